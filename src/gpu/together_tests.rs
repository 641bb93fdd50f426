//! Kernels compiled together are the same, give the same results and fail as they do one by one.

use crate::error::{Error, ErrorKind, Result};
use crate::gpu::parallelism::{spec, StreamParams};
use crate::gpu::{number, Buffer, DType, Gpu, GpuOptions, Kernel, KernelSpec, Tensor, Tier};
use crate::nn::{Linear, LinearArgs, NormShape, RmsNorm, Span, SwiGlu, Weight};
use pollster::block_on;
use std::sync::Barrier;
use std::thread;

fn gpu() -> Gpu {
    let options = GpuOptions { tier: Some(Tier::Portable), ..Default::default() };
    block_on(Gpu::with_options(options)).expect("a GPU adapter, software ones count")
}

/// A kernel of its own per number of lanes.
fn stream(lanes: usize) -> KernelSpec {
    KernelSpec { consts: vec![("LANES", number(lanes))], ..spec() }
}

/// One whose text names a constant that it has not.
fn broken(name: &'static str) -> KernelSpec {
    KernelSpec { name, consts: vec![], ..spec() }
}

fn run(gpu: &Gpu, kernel: &Kernel, [source, sink]: [&Buffer; 2]) -> Result<()> {
    let params = StreamParams { words: 512, first: 0 };
    gpu.record(|pass| gpu.dispatch(pass, kernel, &params, &[source, sink], (1, 1, 1)))
}

fn expect_broken(error: &Error, name: &str) -> String {
    match error.kind() {
        ErrorKind::Gpu { context, message } => {
            assert_eq!(context, name);
            assert!(message.contains("LANES") && message.contains("in shaders/gpu/stream.wgsl:"), "{message}");
            message.clone()
        }
        other => panic!("{other:?}"),
    }
}

const DIM: usize = 40;

/// Products, a SwiGLU and a norm, each of what the one before has made, in the scope that `scope` calls its work in.
fn chain(gpu: &Gpu, scope: impl FnOnce(&dyn Fn() -> Result<()>) -> Result<()>) -> Vec<f32> {
    let values = |n: usize| (0..n).map(|i| ((i * 7919) % 31) as f32 / 16.0 - 0.9).collect::<Vec<_>>();
    let linear = |outs, ins| {
        let weight = Weight::new(gpu, [1, outs, ins], &values(outs * ins), DType::F32).unwrap();
        Linear::new(gpu, &weight, None).unwrap()
    };
    let (first, second) = (linear(2 * DIM, DIM), linear(DIM, DIM));
    let gain = Tensor::from_slice(gpu, &[1, DIM], &values(DIM), DType::F32).unwrap();
    let shape = NormShape { groups: 1, dim: DIM, tail: 0, eps: 1e-6 };
    let tensor = |rows, dim| Tensor::zeros(gpu, &[rows, dim], DType::F32).unwrap();
    let (wide, narrow, out) = (tensor(3, 2 * DIM), tensor(3, DIM), tensor(3, DIM));
    let x = Tensor::from_slice(gpu, &[3, DIM], &values(3 * DIM), DType::F32).unwrap();
    scope(&|| {
        let (swiglu, norm) = (SwiGlu::new(gpu)?, RmsNorm::new(gpu, &gain, shape)?);
        for _ in 0..2 {
            first.run(LinearArgs::new(3, Span::of(&x), Span::of(&wide)))?;
            swiglu.run(&wide, &narrow)?;
            norm.run(3, Span::of(&narrow), Span::of(&out))?;
            second.run(LinearArgs::new(3, Span::of(&out), Span::of(&x)))?;
        }
        Ok(())
    })
    .unwrap();
    block_on(gpu.download(&x)).unwrap()
}

#[test]
fn what_waits_is_recorded_in_order() {
    let (alone, other) = (gpu(), gpu());
    let want = chain(&alone, |work| work());
    assert!(want.iter().any(|v| *v != want[0]) && want.iter().all(|v| v.is_finite()));
    let counts = || (other.counters().pipelines, other.counters().dispatches);
    let got = chain(&other, |work| {
        other.together(|| {
            work()?;
            assert_eq!(counts(), (0, 0), "all of it waits");
            Ok(())
        })
    });
    assert_eq!(got, want);
    let all = counts();
    assert_eq!(all, (3, 8), "the products are one kernel");
    assert_eq!(all, (alone.counters().pipelines, alone.counters().dispatches));
    // What is there compiles nothing, and waits for nothing.
    other.take_compile_times();
    let again = chain(&other, |work| {
        other.together(|| {
            work()?;
            // SwiGLU and norm are kept though nobody held them; products have cells of their own, and find the same.
            assert_eq!(counts(), (3, 16));
            Ok(())
        })
    });
    assert_eq!((again, other.take_compile_times()), (want, Vec::new()));
}

#[test]
fn what_is_needed_in_between_is_there() {
    let (alone, other) = (gpu(), gpu());
    let want = chain(&alone, |work| work());
    let got = other.together(|| Ok(chain(&other, |work| work())));
    assert_eq!(got.unwrap(), want, "read inside of the scope");
}

#[test]
fn one_that_does_not_compile_is_the_error_that_it_is_alone() {
    let gpu = gpu();
    let message = expect_broken(&gpu.kernel(broken("one")).unwrap_err(), "one");
    let known = || gpu.lock(&gpu.inner.kernels).len();
    assert_eq!((known(), gpu.counters().pipelines), (0, 0));
    // The first in the order of the work, whichever thread is faster; the others compile all the same.
    for turn in 1..=5 {
        let lanes = 16 * turn;
        let failed = gpu.together(|| {
            let kernels = [stream(lanes), broken("one"), stream(lanes + 8), broken("two"), broken("three")];
            kernels.map(|spec| gpu.kernel(spec)).into_iter().collect::<Result<Vec<_>>>()
        });
        assert_eq!(expect_broken(&failed.unwrap_err(), "one"), message);
        assert_eq!((known(), gpu.counters().pipelines), (2 * turn, 2 * turn as u64));
    }
    // An error of the work itself comes first.
    let failed = gpu.together(|| {
        gpu.kernel(broken("one"))?;
        Err::<(), Error>(ErrorKind::argument("x", "wrong"))
    });
    assert!(matches!(failed.unwrap_err().kind(), ErrorKind::Argument { name: "x", .. }));
    // Neither leaves a scope behind.
    expect_broken(&gpu.kernel(broken("two")).unwrap_err(), "two");
}

#[test]
fn nothing_behind_one_that_does_not_compile_is_recorded() {
    let gpu = gpu();
    let (source, sink) = (gpu.create_buffer("source", 1 << 14).unwrap(), gpu.create_buffer("sink", 16).unwrap());
    let good = gpu.kernel(stream(32)).unwrap();
    let bad = gpu.lazily(|| gpu.kernel(broken("one"))).unwrap();
    for turn in 1..=2 {
        let failed = gpu.together(|| [&good, &bad, &good].into_iter().try_for_each(|k| run(&gpu, k, [&source, &sink])));
        expect_broken(&failed.unwrap_err(), "one");
        assert_eq!(gpu.counters().dispatches, turn, "the one before it");
    }
    // Nor without a scope.
    expect_broken(&run(&gpu, &bad, [&source, &sink]).unwrap_err(), "one");
    assert_eq!(gpu.counters().dispatches, 2);
    run(&gpu, &good, [&source, &sink]).unwrap();
    gpu.submit().unwrap();
}

#[test]
fn one_that_is_only_named_is_compiled_once_by_whoever_needs_it() {
    let gpu = gpu();
    let (source, sink) = (gpu.create_buffer("source", 1 << 14).unwrap(), gpu.create_buffer("sink", 16).unwrap());
    let named = gpu.lazily(|| Ok([gpu.kernel(stream(32))?, gpu.kernel(stream(64))?])).unwrap();
    assert_eq!(gpu.counters().pipelines, 0);
    // Where it is asked for outside of a scope, it is compiled.
    gpu.kernel(stream(64)).unwrap();
    assert_eq!(gpu.counters().pipelines, 1);
    let barrier = Barrier::new(4);
    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                barrier.wait();
                run(&gpu, &named[0], [&source, &sink]).unwrap();
            });
        }
    });
    assert_eq!((gpu.counters().pipelines, gpu.counters().dispatches), (2, 4));
    gpu.submit().unwrap();
    // One that nobody holds and that was never compiled is not kept.
    let known = gpu.lock(&gpu.inner.kernels).len();
    drop(gpu.lazily(|| gpu.kernel(stream(128))).unwrap());
    assert_eq!(gpu.lock(&gpu.inner.kernels).len(), known);
}

#[test]
fn another_device_has_no_part_in_a_scope() {
    let (one, other) = (gpu(), gpu());
    one.together(|| {
        one.kernel(stream(32))?;
        other.together(|| other.kernel(stream(32)))?;
        assert_eq!((one.counters().pipelines, other.counters().pipelines), (0, 1));
        Ok(())
    })
    .unwrap();
    assert_eq!((one.counters().pipelines, other.counters().pipelines), (1, 1));
}

#[cfg(feature = "model")]
#[test]
fn work_that_is_not_to_be_recorded_is_not() {
    let gpu = gpu();
    let (source, sink) = (gpu.create_buffer("source", 1 << 14).unwrap(), gpu.create_buffer("sink", 16).unwrap());
    let there = gpu.kernel(stream(32)).unwrap();
    gpu.compile_for(|| {
        let named = gpu.kernel(stream(64))?;
        run(&gpu, &there, [&source, &sink])?;
        run(&gpu, &named, [&source, &sink])
    })
    .unwrap();
    assert_eq!((gpu.counters().pipelines, gpu.counters().dispatches), (2, 0));
}

/// On several threads, where the machine has them: some are under way at the same time.
#[test]
fn several_are_compiled_at_once() {
    let gpu = gpu();
    gpu.together(|| (1..=32).map(|n| gpu.kernel(stream(8 * n))).collect::<Result<Vec<_>>>()).unwrap();
    let times = gpu.take_compile_times();
    assert_eq!(times.len(), 32);
    assert!(times.iter().all(|time| time.kernel == "stream" && !time.time.is_zero()));
    assert!(times.iter().any(|time| time.from.is_zero()));
    assert!(gpu.take_compile_times().is_empty());
    if thread::available_parallelism().map_or(1, |n| n.get()) > 1 {
        let pairs = times.iter().flat_map(|a| times.iter().map(move |b| (a, b)));
        let overlap = |(a, b): (&crate::CompileTime, &crate::CompileTime)| a.from < b.from && b.from < a.from + a.time;
        assert!(pairs.into_iter().any(overlap), "{times:?}");
    }
}
