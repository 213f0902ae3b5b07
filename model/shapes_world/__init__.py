"""ShapesWorld: generated scenes of shapes with masks, captions, questions and edits."""
