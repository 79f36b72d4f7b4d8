//! Settings under `/proc/sys/net`.
