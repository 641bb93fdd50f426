//! Steps whose commands are those of an earlier one, and are not recorded anew: the same bits as recorded ones, whatever changes
//! between them, and no memory kept.

use crate::common::*;
use crate::tiny::{Tiny, VARIANTS};
use latten::model::{Decoder, Draw, Session, SessionOptions};
use latten::nn::{Sampling, SwiGlu};
use latten::{DType, Gpu, GpuOptions, SeqId, SplitPolicy, Tensor};
use pollster::block_on;

const PAGE: usize = 4;

fn session(decoder: &Decoder, pages: usize) -> Session {
    let options = SessionOptions {
        max_batch: 3,
        chunk: 8,
        cache_tokens: pages * PAGE,
        page_size: PAGE,
        kv_dtype: DType::F32,
        ..Default::default()
    };
    Session::new(decoder, options).unwrap()
}

/// A device on which every step is recorded: one that has lost commands looks at each dispatch.
fn recording_gpu() -> Gpu {
    let gpu = gpu_with(GpuOptions::default());
    lose_a_batch(&gpu, &SwiGlu::new(&gpu).unwrap(), &Tensor::zeros(&gpu, &[1, 2], DType::F32).unwrap());
    gpu
}

/// Steps of single tokens, of one session and another in turn, between all that changes what a step binds or how its attention
/// is cut: sequences that come and go, grow into new pages, are cut, forked; other draws; logits of all tokens, whose memory
/// comes with the first. Bits of all logits, and all tokens.
fn steps(decoder: &Decoder) -> Vec<u32> {
    let mut all = Vec::new();
    let mut sessions = [session(decoder, 40).with_policy(SplitPolicy::FixedTokens(8)), session(decoder, 40)];
    let mut ids: Vec<Vec<SeqId>> = sessions.iter_mut().map(|s| vec![s.insert(), s.insert()]).collect();
    for (session, ids) in sessions.iter_mut().zip(&ids) {
        all.extend(
            block_on(session.next_tokens(&[(ids[0], &[5, 6, 7]), (ids[1], &[9])], &[Draw::default(); 2])).unwrap(),
        );
    }
    for round in 0..30u32 {
        let which = usize::from(round % 5 == 4);
        let (session, ids) = (&mut sessions[which], &mut ids[which]);
        let tokens: Vec<u32> = (0..ids.len() as u32).map(|i| 1 + (round * 31 + i * 7) % 200).collect();
        let batch: Vec<(SeqId, &[u32])> = ids.iter().copied().zip(tokens.chunks(1)).collect();
        let sampling = Sampling::new(if round % 7 == 3 { 1.1 } else { 0.0 }, 0.9);
        let draws = vec![Draw { sampling, u: 0.37 }; ids.len()];
        if round % 11 == 10 {
            let logits = block_on(session.all_logits(&batch)).unwrap();
            all.extend(logits.concat().iter().map(|l| l.to_bits()));
        } else {
            let both = block_on(session.next_tokens_and_logits(&batch, &draws)).unwrap();
            all.extend(both.tokens);
            all.extend(both.logits.concat().iter().map(|l| l.to_bits()));
        }
        all.extend(block_on(session.next_tokens(&batch[..1], &draws[..1])).unwrap());
        match round {
            7 => ids.push(session.fork(ids[0]).unwrap()),
            13 | 22 => session.truncate(ids[0], 2).unwrap(),
            17 => session.remove(ids.remove(1)).unwrap(),
            18 => drop(block_on(session.logits(&[(ids[0], &[3; 9])])).unwrap()),
            _ => {}
        }
    }
    // A session of another size in the place of the first, whose memory is gone.
    sessions[0] = session(decoder, 12);
    let id = sessions[0].insert();
    for token in 0..10 {
        let logits = block_on(sessions[0].logits(&[(id, &[token])])).unwrap();
        all.extend(logits.concat().iter().map(|l| l.to_bits()));
    }
    all
}

#[test]
fn repeated_steps_give_the_bits_of_recorded_ones() {
    let (recording, repeating) = (recording_gpu(), gpu_with(GpuOptions::default()));
    for variant in VARIANTS {
        let folder = Tiny::new(variant, 5).write(&format!("repeats-{variant}"));
        let [want, got] = [&recording, &repeating].map(|gpu| {
            let before = gpu.counters();
            let bits = steps(&Decoder::load(gpu, folder.path(), DType::F32).unwrap());
            (bits, gpu.counters().dispatches - before.dispatches)
        });
        assert!(got.0 == want.0, "{variant}: other bits");
        assert_eq!(got.1, want.1, "{variant}: dispatches");
    }
}

/// What is bound by a step that may come again goes with its session.
#[test]
fn what_may_be_repeated_keeps_no_memory() {
    let gpu = gpu_with(GpuOptions::default());
    let folder = Tiny::new("gqa", 5).write("repeats-memory");
    let decoder = Decoder::load(&gpu, folder.path(), DType::F32).unwrap();
    let mut sizes = Vec::new();
    for _ in 0..6 {
        let mut session = session(&decoder, 4096);
        let id = session.insert();
        for token in 0..8 {
            block_on(session.next_tokens(&[(id, &[token])], &[Draw::default()])).unwrap();
        }
        drop(session);
        // wgpu frees what was dropped with a later submit.
        (0..2).for_each(|_| {
            drop(block_on(gpu.download::<f32>(&Tensor::zeros(&gpu, &[4], DType::F32).unwrap())).unwrap())
        });
        let Some(report) = gpu.device().generate_allocator_report() else {
            println!("skipped: no allocator report on {}", gpu.capabilities().adapter);
            return;
        };
        sizes.push(report.total_allocated_bytes);
    }
    assert!(sizes[5] <= sizes[1], "{sizes:?} bytes");
}
