//! Every file format, and the only code that writes to disk.
