//! A kdbus in one process and virtual time, for tests and design studies.
