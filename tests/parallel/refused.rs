//! What is refused before anything is computed: other models, other parts, what cannot be divided, calls of one device alone.

use crate::tiny::Tiny;
use crate::{devices, two_ranks, Setup, SMALL as OPTIONS};
use latten::model::{follow, Decoder, LoadOptions, Session, SessionOptions};
use latten::parallel::{local, Collective, Shard, Transfer};
use latten::{DType, Error, ErrorKind, Gpu, RankFault, Result};
use pollster::block_on;
use std::time::Duration;

/// Two ranks whose decoders are what `load` makes of their number: what becomes of each.
fn errors(load: impl Fn(usize, &Gpu, LoadOptions<'_>) -> Result<Decoder> + Sync) -> [Error; 2] {
    errors_with(OPTIONS, load)
}

fn errors_with(
    options: SessionOptions,
    load: impl Fn(usize, &Gpu, LoadOptions<'_>) -> Result<Decoder> + Sync,
) -> [Error; 2] {
    let devices = devices();
    let results = local::run(2, Duration::from_secs(30), |rank| {
        let shard = Shard::of(&rank)?;
        let decoder = load(rank.rank(), &devices.gpus[rank.rank()], LoadOptions { shard, ..Default::default() })?;
        match rank.rank() {
            0 => Session::sharded(&decoder, options, Box::new(rank), Transfer::F32).map(drop),
            _ => follow(&decoder, Box::new(rank)),
        }
    });
    let errors: Vec<Error> = results.unwrap().into_iter().map(Result::unwrap_err).collect();
    errors.try_into().unwrap()
}

fn fault(error: &Error) -> RankFault {
    match error.kind() {
        ErrorKind::Rank { fault, .. } => fault.clone(),
        other => panic!("{other:?}"),
    }
}

#[test]
fn another_model_is_refused_on_both_ranks() {
    let folder = Tiny::new("gla", 1).write("sharded-other");
    let mut changed = Tiny::new("gla", 1);
    // One number of the last row of a matrix.
    *changed.tensors.get_mut("model.layers.1.mlp.up_proj.weight").unwrap().1.last_mut().unwrap() += 0.5;
    let changed = changed.write("sharded-other-changed");
    let mut config = Tiny::new("gla", 1);
    config.config.insert("rope_theta".into(), 5e3.into());
    let config = config.write("sharded-other-config");
    for (what, other, dtype) in
        [("a weight", &changed, DType::F16), ("the config", &config, DType::F16), ("the dtype", &folder, DType::F32)]
    {
        let both = errors(|rank, gpu, options| match rank {
            0 => Decoder::load_with(gpu, folder.path(), options),
            _ => Decoder::load_with(gpu, other.path(), LoadOptions { dtype, ..options }),
        });
        for error in &both {
            let fault = fault(error);
            let RankFault::Other { what: "model, its config or how it is loaded", rank: 1, theirs, first } = fault
            else {
                panic!("{what}: {fault:?}")
            };
            assert_ne!(theirs, first);
        }
    }
}

#[test]
fn another_part_or_rank_is_refused() {
    let folder = Tiny::new("gqa", 1).write("sharded-part");
    let [first, second] = errors(|_, gpu, options| {
        let shard = Shard::new(0, 2).unwrap();
        Decoder::load_with(gpu, folder.path(), LoadOptions { shard, ..options })
    });
    assert!(second.to_string().contains("holds part 0 of 2, this is rank 1 of 2"), "{second}");
    assert!(matches!(fault(&first), RankFault::Failed { rank: 1, message } if message.contains("part 0 of 2")));
    let devices = devices();
    let load = |shard| {
        let options = LoadOptions { shard, ..Default::default() };
        Decoder::load_with(&devices.gpus[0], folder.path(), options).unwrap()
    };
    let part = load(Shard::new(0, 2).unwrap());
    assert_eq!((part.shard().rank(), part.shard().size(), part.config().q_heads), (0, 2, 4));
    let error = Session::new(&part, OPTIONS).unwrap_err().to_string();
    assert!(error.contains("part 0 of 2"), "{error}");
    // One rank is a model as a whole.
    let whole = load(Shard::whole());
    let mut ranks = local::ranks(1, Duration::from_secs(9)).unwrap();
    let error = follow(&whole, Box::new(ranks.remove(0))).unwrap_err().to_string();
    assert!(error.contains("rank 0 of 1: follow is for the others"), "{error}");
    let rank = local::ranks(1, Duration::from_secs(9)).unwrap().remove(0);
    let mut alone = Session::sharded(&whole, OPTIONS, Box::new(rank), Transfer::F32).unwrap();
    let mut plain = Session::new(&whole, OPTIONS).unwrap();
    let (a, b) = (alone.insert(), plain.insert());
    let tokens = [1u32, 2, 3];
    assert_eq!(block_on(alone.logits(&[(a, &tokens)])).unwrap(), block_on(plain.logits(&[(b, &tokens)])).unwrap());
}

#[test]
fn what_cannot_be_divided_is_named_with_its_numbers() {
    let devices = devices();
    let gpu = &devices.gpus[0];
    let why = |variant: &str, size: usize, change: &dyn Fn(&mut Tiny)| {
        let mut tiny = Tiny::new(variant, 2);
        change(&mut tiny);
        let folder = tiny.write(&format!("sharded-sizes-{variant}-{size}"));
        let shard = Shard::new(0, size).unwrap();
        let error = Decoder::load_with(gpu, folder.path(), LoadOptions { shard, ..Default::default() }).unwrap_err();
        assert!(matches!(error.kind(), ErrorKind::Argument { .. }), "{error}");
        error.to_string()
    };
    assert_eq!(why("gqa", 3, &|_| {}), "q_heads: 4 cannot be divided among 3 ranks");
    assert_eq!(why("mla", 4, &|_| {}), "intermediate_size: 22 cannot be divided among 4 ranks");
}

/// A session that one rank cannot make, and options that none can.
#[test]
fn options_that_are_refused_are_refused_on_both_ranks() {
    let folder = Tiny::new("gta", 1).write("sharded-options");
    let options = SessionOptions { page_size: 3, ..OPTIONS };
    let both = errors_with(options, |_, gpu, options| Decoder::load_with(gpu, folder.path(), options));
    for error in both {
        assert!(matches!(error.kind(), ErrorKind::Argument { name: "page_size", .. }), "{error}");
    }
}

#[test]
fn calls_of_one_device_alone_are_refused() {
    let devices = devices();
    let folder = Tiny::new("gla", 1).write("sharded-calls");
    let load = |gpu: &Gpu, options: LoadOptions<'_>| Decoder::load_with(gpu, folder.path(), options);
    two_ranks(&devices, &load, Setup::new(OPTIONS), |mut session| {
        let unsupported = |error: Error| assert!(matches!(error.kind(), ErrorKind::Unsupported { .. }), "{error}");
        unsupported(block_on(session.save(&[], Vec::new(), |_| {})).unwrap_err());
        unsupported(block_on(session.load(&b""[..], |_| {})).unwrap_err());
        unsupported(block_on(session.measure_prefill()).unwrap_err());
        let decoder = session.decoder().clone();
        unsupported(session.rebuild(&decoder).unwrap_err());
    });
}
