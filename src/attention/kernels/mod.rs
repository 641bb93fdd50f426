//! Which decode kernel a layout gets on a device, and its text. Pure.

pub(crate) mod matrix;
pub(crate) mod rows;
pub(crate) mod select;
pub(crate) mod short;
pub(crate) mod spec;
pub(crate) mod tile;
