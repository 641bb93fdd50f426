use super::*;
use crate::gpu::Gpu;

#[test]
fn one_row_differs_only_in_what_leaves_sums_as_they_are() {
    let gpu = pollster::block_on(Gpu::new()).expect("a GPU adapter, software ones count");
    let large = Capabilities {
        device_type: wgpu::DeviceType::DiscreteGpu,
        subgroup_size: 32,
        tier: Tier::Subgroup,
        target_workgroups: 256,
        dispatch_flop: u64::MAX,
        ..gpu.capabilities().clone()
    };
    for (dtype, want) in [(DType::F16, (64, 1, 2)), (DType::I8, (64, 4, 2))] {
        let weight = Weight::new(&gpu, [1, 1024, 4096], &vec![1.0; 1024 * 4096], dtype).unwrap();
        let [one, more, eight] = LinearTuning::of(&large, &weight);
        assert_eq!((one.in_lanes, one.outs, one.steps), want, "{dtype}");
        assert_eq!((more.in_lanes, more.outs, more.steps), (64, 4, 2), "{dtype}");
        assert_eq!((eight.in_lanes, eight.outs, eight.steps), (64, 8, 4), "{dtype}");
        assert!(![one, more, eight].iter().any(|tuning| tuning.subgroups), "{dtype}");
        for other in [one, eight] {
            assert_eq!(LinearTuning { outs: more.outs, steps: more.steps, ..other }, more, "{dtype}");
        }
        for tuning in [one, more, eight] {
            tuning.check(&large, false).unwrap();
        }
    }
    // Of many lanes one row takes subgroups, which leave its sums as they are.
    let weight = Weight::new(&gpu, [1, 1024, 5632], &vec![1.0; 1024 * 5632], DType::F16).unwrap();
    let [one, more, eight] = LinearTuning::of(&large, &weight);
    assert_eq!(
        [one, more, eight].map(|tuning| (tuning.in_lanes, tuning.subgroups)),
        [(128, true), (128, false), (128, false)]
    );
    assert_eq!(eight.outs, 4);
}
