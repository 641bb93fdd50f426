//! Append, decode and merge on the adapter that is there, against the f64 reference.

mod decode;
mod support;
