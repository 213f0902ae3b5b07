"""Tar archives in the layout of webdataset: their names, streams, entries and local copies."""

from setokim.data.archives.copies import local_copy
from setokim.data.archives.entries import ArchiveEntry, read_entries
from setokim.data.archives.names import expand
from setokim.data.archives.streams import SourceError, open_seekable, open_stream

__all__ = [
    "ArchiveEntry",
    "SourceError",
    "expand",
    "local_copy",
    "open_seekable",
    "open_stream",
    "read_entries",
]
