"""Clustered tokens in the models of other libraries; each subpackage needs its own library."""
