//! A model's tensors, from files to the device.

pub(crate) mod header;
pub(crate) mod reader;
pub(crate) mod safetensors;
pub(crate) mod split;
mod tied;
mod unused;
