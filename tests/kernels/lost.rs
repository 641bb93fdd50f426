//! A cache without a session where recorded work is lost: no token is counted that nobody wrote.

use crate::common::{bits, gpu_with, record_doomed, small, wait, Rng};
use latten::nn::SwiGlu;
use latten::{
    CacheOptions, DType, Decode, DecodeArgs, Error, ErrorKind, Gpu, GpuOptions, PagedKvCache, Pages, SeqId, Tensor,
};

fn lose_a_batch(gpu: &Gpu) {
    let out = Tensor::zeros(gpu, &[1, 2], DType::F32).unwrap();
    record_doomed(gpu, &SwiGlu::new(gpu).unwrap(), &out).unwrap();
    assert!(gpu.submit().is_err());
}

fn assert_lost<T>(what: &str, result: Result<T, Error>) {
    let error = result.err().unwrap_or_else(|| panic!("{what} succeeded"));
    assert!(matches!(error.kind(), ErrorKind::CommandsLost { .. }), "{what}: {error:?}");
}

struct Work {
    gpu: Gpu,
    cache: PagedKvCache,
    decode: Decode,
    q: Tensor,
}

const TOKENS: usize = 8;

impl Work {
    fn new() -> Self {
        let (gpu, heads) = (gpu_with(GpuOptions::default()), small());
        let cache =
            PagedKvCache::new(&gpu, heads, CacheOptions::new(DType::F32, Pages { count: 32, size: 4, layers: 2 }))
                .unwrap();
        let decode = Decode::new(&gpu, heads, DType::F32).unwrap();
        let q = Rng(5).values(TOKENS * heads.q_heads() * heads.q_dim());
        let q = Tensor::from_slice(&gpu, &[TOKENS, heads.q_heads(), heads.q_dim()], &q, DType::F32).unwrap();
        Work { gpu, cache, decode, q }
    }

    fn append(&mut self, id: SeqId, seed: u64) -> latten::Result<()> {
        let dim = small().kv_dim();
        let kv = Tensor::from_slice(&self.gpu, &[TOKENS, dim], &Rng(seed).values(TOKENS * dim), DType::F32)?;
        (0..2).try_for_each(|layer| self.cache.append(layer, &[id], &kv))
    }

    fn attend(&self, id: SeqId) -> latten::Result<Vec<u32>> {
        let plan = self.decode.plan(&self.cache, &[id])?;
        let result = self.decode.run(DecodeArgs::new(&plan, &self.cache.layer(1)?, &self.q, 0.25))?;
        Ok(bits(&wait(self.gpu.download(&result.out))?))
    }

    /// A step of a sequence: appended, attended from, committed with its tokens.
    fn step(&mut self, id: SeqId, seed: u64) -> latten::Result<Vec<u32>> {
        self.cache.reserve(&[id], TOKENS)?;
        self.append(id, seed)?;
        let values = self.attend(id)?;
        self.cache.commit_tokens(&[(id, &[seed as u32; TOKENS])])?;
        Ok(values)
    }
}

#[test]
fn a_cache_counts_no_token_whose_rows_are_lost() {
    let mut work = Work::new();
    let want = {
        let mut alone = Work::new();
        let id = alone.cache.match_prefix(&[], 0);
        [1, 2].map(|seed| alone.step(id, seed).unwrap())
    };
    let id = work.cache.match_prefix(&[], 0);
    assert_eq!(work.step(id, 1).unwrap(), want[0]);
    let kept = work.cache.stats();

    // Lost after it was recorded: attention, commits and saves are refused, and nothing is published.
    work.cache.reserve(&[id], TOKENS).unwrap();
    work.append(id, 2).unwrap();
    lose_a_batch(&work.gpu);
    assert_lost("attention", work.attend(id));
    assert_lost("append", work.append(id, 2));
    assert_lost("commit", work.cache.commit(&[id], TOKENS));
    assert_lost("commit_tokens", work.cache.commit_tokens(&[(id, &[2; TOKENS])]));
    assert_eq!(work.cache.len(id).unwrap(), TOKENS);
    // Another sequence may have written into the same batch: none is counted while someone's reservation stands.
    let other = work.cache.match_prefix(&[], 1);
    work.cache.reserve(&[other], TOKENS).unwrap();
    assert_lost("another", work.append(other, 1));
    work.cache.remove(other).unwrap();
    // Given up, and begun again.
    work.cache.commit(&[id], 0).unwrap();
    assert_eq!((work.cache.stats().used, work.cache.stats().evictable), (kept.used, kept.evictable));
    assert_eq!(work.step(id, 2).unwrap(), want[1]);

    // Whoever finds the pages finds what was computed.
    let mut tokens = vec![1; TOKENS];
    tokens.extend([2; TOKENS]);
    let found = work.cache.match_prefix(&tokens, 0);
    let len = work.cache.len(found).unwrap();
    assert_eq!(len, 2 * TOKENS - 4);
    work.cache.truncate(found, TOKENS).unwrap();
    assert_eq!(work.step(found, 2).unwrap(), want[1]);
}

/// A commit before anything was read: what is recorded is sent first, so that its loss is known.
#[test]
fn a_commit_sends_what_is_recorded_and_fails_with_it() {
    let mut work = Work::new();
    let id = work.cache.match_prefix(&[], 0);
    work.cache.reserve(&[id], TOKENS).unwrap();
    work.append(id, 1).unwrap();
    // Destroyed between recording and sending.
    let (size, usage) = (16, wgpu::BufferUsages::STORAGE);
    let desc = wgpu::BufferDescriptor { label: None, size, usage, mapped_at_creation: false };
    let buffer = work.gpu.device().create_buffer(&desc);
    let doomed = Tensor::from_wgpu(&work.gpu, buffer, &[1, 4], DType::F32).unwrap();
    let out = Tensor::zeros(&work.gpu, &[1, 2], DType::F32).unwrap();
    SwiGlu::new(&work.gpu).unwrap().run(&doomed, &out).unwrap();
    doomed.wgpu_buffer().destroy();
    assert_lost("commit", work.cache.commit_tokens(&[(id, &[1; TOKENS])]));
    assert_eq!(work.cache.len(id).unwrap(), 0);
    work.cache.truncate(id, 0).unwrap();
    work.step(id, 1).unwrap();
    // A copy of a shared page that is lost is not taken for made.
    let fork = work.cache.fork(id).unwrap();
    assert_eq!(work.cache.len(fork).unwrap(), TOKENS);
}
