//! Losses that become known late, as in browsers; and how much is kept of what nobody holds.

use super::*;
use crate::attention::{AttentionOptions, Decode};
use crate::cache::{CacheOptions, PagedKvCache, Pages};
use crate::gpu::{DType, Tensor};
use crate::kv::{Gqa, HeadLayout};
use crate::nn::SwiGlu;
use pollster::block_on;

fn noop() -> Gpu {
    let (device, queue) = wgpu::Device::noop(&wgpu::DeviceDescriptor::default());
    Gpu::from_wgpu(None, device, queue).unwrap()
}

fn heads() -> HeadLayout {
    HeadLayout::gqa(Gqa { q_heads: 4, kv_heads: 2, head_dim: 8 }).unwrap()
}

/// An app's buffer, recorded and then destroyed: the batch is lost when it is sent.
fn doom(gpu: &Gpu) {
    let (size, usage) = (16, wgpu::BufferUsages::STORAGE);
    let desc = wgpu::BufferDescriptor { label: None, size, usage, mapped_at_creation: false };
    let buffer = gpu.device().create_buffer(&desc);
    let doomed = Tensor::from_wgpu(gpu, buffer, &[1, 4], DType::F32).unwrap();
    let out = Tensor::zeros(gpu, &[1, 2], DType::F32).unwrap();
    SwiGlu::new(gpu).unwrap().run(&doomed, &out).unwrap();
    doomed.wgpu_buffer().destroy();
}

fn is_lost<T>(result: Result<T>) -> bool {
    match result {
        Ok(_) => false,
        Err(error) => {
            assert!(matches!(error.kind(), ErrorKind::CommandsLost { .. }), "{error:?}");
            true
        }
    }
}

/// Where errors come late the one who asks next is told too, and no other; whoever waited first.
#[test]
fn a_loss_that_becomes_known_late_is_told_to_whom_it_concerns() {
    let gpu = noop();
    let swiglu = SwiGlu::new(&gpu).unwrap();
    let tensor = |n| Tensor::zeros(&gpu, &[1, n], DType::F32).unwrap();
    let (x, y, bystander) = (tensor(4), tensor(2), tensor(2));
    gpu.answer_late();
    let before = gpu.losses();
    swiglu.run(&x, &y).unwrap();
    doom(&gpu);
    gpu.submit().unwrap(); // too early to know
    assert_eq!(gpu.losses(), before);
    assert!(y.buffer.is_unanswered());
    // A wait that is dropped takes no answer with it.
    drop(gpu.answered());
    block_on(gpu.download::<f32>(&bystander)).unwrap();
    assert!(gpu.losses() > before && !y.buffer.is_unanswered());
    assert!(is_lost(block_on(gpu.download::<f32>(&y))));
    assert!(is_lost(gpu.expect_no_loss(before, "a step")));
    // A copy that is refused is the loss of who wanted it, whoever hears of it first.
    let gone = tensor(2);
    gone.wgpu_buffer().destroy();
    let ticket = gpu.submit_with(&[&gone.buffer], |encoder| {
        encoder.copy_buffer_to_buffer(gone.wgpu_buffer(), 0, bystander.wgpu_buffer(), 0, 8);
    });
    block_on(gpu.download::<f32>(&x)).unwrap();
    assert!(is_lost(ticket.unwrap().check(&gpu)));
}

/// Tokens that were counted before a browser could say that their rows are lost: the cache is refused until it is rebuilt.
#[test]
fn a_cache_that_counted_too_early_is_refused() {
    let gpu = noop();
    let mut cache =
        PagedKvCache::new(&gpu, heads(), CacheOptions::new(DType::F32, Pages { count: 8, size: 4, layers: 1 }))
            .unwrap();
    let kv = Tensor::zeros(&gpu, &[1, heads().kv_dim()], DType::F32).unwrap();
    gpu.answer_late();
    let id = cache.insert();
    for lost in [false, true] {
        cache.reserve(&[id], 1).unwrap();
        cache.append(0, &[id], &kv).unwrap();
        if lost {
            doom(&gpu);
        }
        cache.commit(&[id], 1).unwrap();
        block_on(gpu.download::<f32>(&kv)).unwrap();
        cache.truncate(id, 0).unwrap();
    }
    cache.reserve(&[id], 1).unwrap();
    assert!(is_lost(cache.append(0, &[id], &kv)));
    cache.truncate(id, 0).unwrap();
    cache.reserve(&[id], 1).unwrap();
    assert!(is_lost(cache.append(0, &[id], &kv)), "though no reservation from before is left");
    assert!(is_lost(cache.commit(&[id], 1)));
    cache.rebuild(&gpu).unwrap();
    cache.reserve(&[id], 1).unwrap();
    cache.append(0, &[id], &kv).unwrap();
    cache.commit(&[id], 1).unwrap();
    block_on(gpu.download::<f32>(&kv)).unwrap();
}

/// Kernels that nobody holds: the last ones asked for, and no bind groups of others.
#[test]
fn kernels_that_nobody_holds_are_bounded_and_the_last_ones_compile_once() {
    let gpu = noop();
    let decode = |window| {
        let options = AttentionOptions { window: Some(window), ..Default::default() };
        Decode::with_options(&gpu, heads(), DType::F32, options).unwrap()
    };
    let kept = || gpu.lock(&gpu.inner.kernels).len();
    let held = decode(1);
    let before = kept();
    for window in 2..=100 {
        drop(decode(window));
    }
    assert_eq!(kept(), before + 32, "idle kernels are kept up to their bound");
    // Dropped and made again by turns: nothing compiles.
    let compiled = gpu.counters().pipelines;
    (0..20).for_each(|turn| drop(decode(100 - turn % 2)));
    // What is held stays, however many come after it.
    drop(decode(1));
    assert_eq!(gpu.counters().pipelines, compiled);
    drop(decode(2));
    assert!(gpu.counters().pipelines > compiled, "one that was let go compiles again");
    drop(held);
    assert_eq!(kept(), 32);
    gpu.keep_idle_kernels(40);
    (300..400).for_each(|window| drop(decode(window)));
    assert_eq!(kept(), 40);
    gpu.keep_idle_kernels(32);
    drop(decode(400));
    assert_eq!(kept(), 32);

    // Bind groups go with the buffers that they are of, and are those of all kernels with the same bindings.
    let [x, y] = [4, 2].map(|n| Tensor::zeros(&gpu, &[1, n], DType::F32).unwrap());
    let groups = || gpu.lock(&gpu.inner.bind_groups).len();
    (0..2).for_each(|_| {
        SwiGlu::new(&gpu).unwrap().run(&x, &y).unwrap();
        (200..220).for_each(|window| drop(decode(window)));
    });
    assert_eq!(groups(), 1);
    drop((x, y));
    assert_eq!(groups(), 0);
    // What is recorded keeps what it needs.
    gpu.submit().unwrap();
}
