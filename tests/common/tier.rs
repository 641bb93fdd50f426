//! The tier of kernels under test: `LATTEN_TEST_TIER` = t0, t1 or t2; unset: what latten takes by itself.

use latten::{Gpu, GpuOptions, Tier};

/// The environment variable.
pub const NAME: &str = "LATTEN_TEST_TIER";

/// The tier that the variable names.
pub fn wanted() -> Option<Tier> {
    let text = std::env::var(NAME).ok().filter(|text| !text.is_empty())?;
    Some(named(&text).unwrap_or_else(|| panic!("{NAME}={text}: wanted t0, t1 or t2")))
}

fn named(text: &str) -> Option<Tier> {
    [("t0", Tier::Portable), ("t1", Tier::Subgroup), ("t2", Tier::Matrix)]
        .into_iter()
        .find(|(name, _)| *name == text)
        .map(|(_, tier)| tier)
}

/// A device with these options, of the tier under test unless they name one, or forbid all features. An adapter that has
/// not the tier is a failure: a run for one tier never tests another.
pub fn gpu_with(options: GpuOptions) -> Gpu {
    let wanted = if options.no_features || options.tier.is_some() { None } else { wanted() };
    let options = GpuOptions { tier: options.tier.or(wanted), ..options };
    let gpu = pollster::block_on(Gpu::with_options(options));
    let gpu = gpu.expect("a GPU adapter, software ones count (Debian: apt-get install mesa-vulkan-drivers libvulkan1)");
    let c = gpu.capabilities();
    assert!(wanted.is_none_or(|tier| tier == c.tier), "{NAME}: {} has {:?}, not {wanted:?}", c.adapter, c.tier);
    gpu
}

#[test]
fn tiers_by_name() {
    assert_eq!(named("t0"), Some(Tier::Portable));
    assert_eq!(named("t2"), Some(Tier::Matrix));
    assert_eq!([named(""), named("T0"), named("t3"), named("auto")], [None; 4]);
}

/// Every device of a run is of its tier; one without features is portable, one with a tier of its own keeps it.
#[test]
fn devices_are_of_the_tier_under_test() {
    let tier = |options| gpu_with(options).capabilities().tier;
    let own = tier(GpuOptions::default());
    println!("under test: {own:?}"); // read by ./dev
    assert!(wanted().is_none_or(|tier| tier == own));
    // Without being asked latten takes no experimental feature.
    assert!(wanted().is_some() || own < Tier::Matrix);
    assert_eq!(tier(GpuOptions { no_features: true, ..Default::default() }), Tier::Portable);
    assert_eq!(tier(GpuOptions { tier: Some(Tier::Portable), ..Default::default() }), Tier::Portable);
}
