"""Stage zero: a data set on disk becomes an index of frames."""
