//! Unwind tables: `.eh_frame` in, 8-byte rows out.
