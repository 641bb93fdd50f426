//! Grids of one dimension, folded to the limits of a dispatch. Pure.

/// `count` workgroups as the y and z of a grid, each at most 65,535, with less than one z too many: a kernel takes
/// item `y + z * num_workgroups.y` and leaves if there is none. `count` is that of a [`WorkList`]'s list.
pub(crate) fn fold(count: usize) -> (u32, u32) {
    const MAX: usize = 65_535;
    let z = count.div_ceil(MAX).clamp(1, MAX);
    let y = count.div_ceil(z).min(MAX);
    (y as u32, z as u32)
}
