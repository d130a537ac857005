//! End-to-end tests, run in the lab.
