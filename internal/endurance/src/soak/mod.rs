//! Soaks.
