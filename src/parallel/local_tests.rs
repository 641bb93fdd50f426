use super::*;
use std::sync::Barrier;

const LONG: Duration = Duration::from_secs(20);

fn values(rank: usize, len: usize) -> Vec<f32> {
    // Sums of these depend on their order.
    (0..len).map(|i| ((rank * 7 + i * 13) % 101) as f32 * 1.1f32.powi((rank * 5 + i) as i32 % 40 - 20)).collect()
}

fn fault(error: &Error) -> RankFault {
    match error.kind() {
        ErrorKind::Rank { fault, .. } => fault.clone(),
        other => unreachable!("{other:?}"),
    }
}

#[test]
fn sums_are_in_the_order_of_ranks_and_the_same_bits_everywhere() {
    for size in [1, 2, 3, 5] {
        for len in [0, 1, 2, 3, 64, 1001] {
            let all = run(size, LONG, |mut rank| {
                let mut values = values(rank.rank(), len);
                // Twice: what was left by the first must not be read by the second.
                rank.all_reduce(&mut values)?;
                let once = values.clone();
                rank.all_reduce(&mut values)?;
                Ok((once, values))
            });
            let want: Vec<f32> =
                (0..len).map(|i| (1..size).fold(values(0, len)[i], |sum, rank| sum + values(rank, len)[i])).collect();
            let twice: Vec<f32> = want.iter().map(|v| (1..size).fold(*v, |sum, _| sum + v)).collect();
            let bits = |values: &[f32]| values.iter().map(|v| v.to_bits()).collect::<Vec<_>>();
            for got in all.unwrap() {
                let (once, both) = got.unwrap();
                assert_eq!(bits(&once), bits(&want), "{size} ranks, {len} values");
                assert_eq!(bits(&both), bits(&twice), "{size} ranks, {len} values");
            }
        }
    }
}

#[test]
fn what_is_gathered_or_broadcast_keeps_its_bits() {
    let odd = [f32::from_bits(0x7fc0_1234), f32::from_bits(0xff80_0001), -0.0, f32::INFINITY];
    let got = run(3, LONG, |mut rank| {
        let own: Vec<f32> = odd.iter().map(|v| f32::from_bits(v.to_bits() ^ rank.rank() as u32)).collect();
        let mut all = vec![0.0; 12];
        let mut seen = Vec::new();
        for turn in 0..50u8 {
            rank.all_gather(&own, &mut all)?;
            let mut bytes = if rank.rank() == 0 { vec![turn; usize::from(turn) * 3] } else { vec![9] };
            rank.broadcast(&mut bytes)?;
            seen.push(bytes);
        }
        rank.all_gather(&[], &mut [])?;
        Ok((all.iter().map(|v| v.to_bits()).collect::<Vec<_>>(), seen))
    });
    for got in got.unwrap() {
        let (all, seen) = got.unwrap();
        let want: Vec<u32> = (0..3u32).flat_map(|rank| odd.map(|v| v.to_bits() ^ rank)).collect();
        assert_eq!(all, want);
        assert!(seen.iter().enumerate().all(|(turn, bytes)| *bytes == vec![turn as u8; turn * 3]));
    }
    let mut alone = ranks(1, LONG).unwrap();
    let error = alone[0].all_gather(&[1.0], &mut [0.0; 2]).unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::Shape { name: "all", .. }), "{error}");
}

#[test]
fn a_rank_that_panics_or_is_dropped_is_gone_for_all() {
    for panics in [true, false] {
        let got = run(3, LONG, |mut rank| {
            rank.all_reduce(&mut [1.0])?;
            if rank.rank() == 1 {
                assert!(!panics, "rank 1 has had enough");
                return Ok(0.0);
            }
            let mut sum = [1.0];
            let first = rank.all_reduce(&mut sum).unwrap_err();
            // Later calls say the same.
            let again = rank.broadcast(&mut Vec::new()).unwrap_err();
            assert_eq!(first.to_string(), again.to_string());
            Err(first)
        });
        let got: Vec<_> = got.unwrap();
        for rank in [0, 2] {
            assert_eq!(fault(got[rank].as_ref().unwrap_err()), RankFault::Gone { rank: 1 });
        }
        match panics {
            true => {
                let own = fault(got[1].as_ref().unwrap_err());
                assert_eq!(own, RankFault::Panicked { message: "rank 1 has had enough".into() });
            }
            false => assert!(got[1].is_ok()),
        }
    }
}

#[test]
fn a_rank_that_does_not_come_is_a_timeout_for_all_and_for_itself() {
    let late = Barrier::new(2);
    let start = Instant::now();
    let got = run(2, Duration::from_millis(80), |mut rank| {
        if rank.rank() == 1 {
            late.wait();
        }
        let sum = rank.all_reduce(&mut [1.0; 8]);
        if rank.rank() == 0 {
            late.wait();
        }
        sum
    });
    for got in got.unwrap() {
        let fault = fault(&got.unwrap_err());
        let RankFault::Timeout { call: "all_reduce", rank: 1, waited_ms } = fault else { unreachable!("{fault:?}") };
        assert!((80..10_000).contains(&waited_ms), "{waited_ms} ms");
    }
    assert!(start.elapsed() < Duration::from_secs(10));
}

#[test]
fn a_command_is_waited_for_longer_than_the_timeout_but_not_for_a_rank_that_is_gone() {
    let got = run(2, Duration::from_millis(30), |mut rank| {
        let mut bytes = b"go on".to_vec();
        if rank.rank() == 0 {
            std::thread::sleep(Duration::from_millis(150));
            rank.broadcast(&mut bytes)?;
            std::thread::sleep(Duration::from_millis(150));
            return Ok(bytes);
        }
        bytes.clear();
        rank.broadcast(&mut bytes)?;
        let end = rank.broadcast(&mut Vec::new()).unwrap_err();
        assert_eq!(fault(&end), RankFault::Gone { rank: 0 });
        Ok(bytes)
    });
    assert!(got.unwrap().into_iter().all(|bytes| bytes.unwrap() == b"go on"));
}

#[test]
fn calls_and_sizes_that_differ_are_errors_of_all() {
    let sizes = run(3, LONG, |mut rank| rank.all_reduce(&mut vec![1.0; if rank.rank() == 2 { 7 } else { 8 }]));
    for got in sizes.unwrap() {
        let want = RankFault::Sizes { call: "all_reduce", rank: 2, theirs: 7, first: 8 };
        assert_eq!(fault(&got.unwrap_err()), want);
    }
    let calls = run(2, LONG, |mut rank| match rank.rank() {
        0 => rank.broadcast(&mut vec![1, 2]),
        _ => rank.all_reduce(&mut [1.0]),
    });
    for got in calls.unwrap() {
        let want = RankFault::Calls { rank: 1, theirs: "all_reduce", first: "broadcast" };
        assert_eq!(fault(&got.unwrap_err()), want);
    }
}

#[test]
fn who_abandons_is_heard_by_who_waits_and_by_who_comes_later() {
    let got = run(3, LONG, |mut rank| match rank.rank() {
        0 => {
            std::thread::sleep(Duration::from_millis(40));
            rank.abandon("the device is lost");
            rank.all_reduce(&mut [1.0])
        }
        1 => rank.broadcast(&mut Vec::new()),
        _ => {
            std::thread::sleep(Duration::from_millis(80));
            rank.all_gather(&[1.0], &mut [0.0; 3])
        }
    });
    for (rank, got) in got.unwrap().into_iter().enumerate() {
        let error = got.unwrap_err();
        assert_eq!(fault(&error), RankFault::Failed { rank: 0, message: "the device is lost".into() });
        assert_eq!(error.to_string(), format!("rank {rank} of 3: rank 0 failed: the device is lost"));
    }
}

#[test]
fn no_ranks_are_refused() {
    for size in [0, 1025] {
        assert!(matches!(ranks(size, LONG).unwrap_err().kind(), ErrorKind::Argument { name: "size", .. }));
    }
}
