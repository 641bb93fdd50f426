//! What the planner refuses, and numbers at their ends.

use super::*;

#[test]
fn bad_arguments() {
    let ok = decode(&[100]);
    let split = |policy| matches!(err(&ok, &gla(), policy), ErrorKind::Argument { name: "split", .. });
    assert!(split(SplitPolicy::FixedTokens(0)) && split(SplitPolicy::Count(0)));
    assert!(matches!(err(&batch(&[(2, 1)]), &gla(), SplitPolicy::Off), ErrorKind::Argument { name: "kv_len", .. }));
    let wrong = [
        PlanShape { heads_per_group: 0, ..gla() },
        PlanShape { groups: 0, ..gla() },
        PlanShape { v_dim: 0, ..gla() },
        PlanShape { bytes_per_token: 0, ..gla() },
        PlanShape { target_workgroups: 0, ..gla() },
        PlanShape { token_tile: 0, ..gla() },
        PlanShape { token_tile: 48, ..gla() },
        PlanShape {
            rope_bytes: 0,
            row_tiles: vec![],
            groups_per_workgroup: vec![],
            room: vec![],
            squads: vec![1; 1],
            short_tokens: vec![0; 1],
            short_workgroups: vec![1; 1],
            most_tokens: vec![u64::MAX; 1],
            ..gla()
        },
        PlanShape { row_tiles: vec![0, 8, 64], ..gla() },
        PlanShape { row_tiles: vec![8, 8, 64], ..gla() },
        PlanShape { row_tiles: vec![8, 16, usize::MAX], ..gla() },
        PlanShape { groups_per_workgroup: vec![1, 1], ..gla() },
        PlanShape { groups_per_workgroup: vec![1, 0, 1], ..gla() },
        PlanShape { groups_per_workgroup: vec![1, 1, 3], ..gla() },
        PlanShape { room: vec![1, 1], ..gla() },
        PlanShape { room: vec![1, 0, 1], ..gla() },
        PlanShape { squads: vec![1, 1], ..gla() },
        PlanShape { squads: vec![8, 0, 1], ..gla() },
        PlanShape { short_tokens: vec![0, 0], ..gla() },
        PlanShape { short_workgroups: vec![1, 1, 1, 1], ..gla() },
        PlanShape { most_tokens: vec![9, 9], ..gla() },
        PlanShape { most_tokens: vec![9, 0, 9], ..gla() },
    ];
    for shape in wrong {
        let kind = err(&ok, &shape, SplitPolicy::Auto);
        assert!(matches!(kind, ErrorKind::Argument { .. }), "{shape:?}: {kind}");
    }
}

#[test]
fn extremes_are_errors_or_plans() {
    const MAX: u32 = u32::MAX;
    let view = SeqView { page_table_first: 0, q_token_first: 0, q_len: 1, kv_len: MAX, gap_first: 0, gap_last: 0 };
    let fine = PlanShape { token_tile: 1, ..gqa() };
    for policy in [SplitPolicy::Auto, SplitPolicy::Off, SplitPolicy::FixedTokens(usize::MAX), SplitPolicy::Count(9)] {
        for shape in [&gla(), &fine, &PlanShape { v_dim: usize::MAX, groups: usize::MAX, ..gla() }] {
            check_plan(&[view], shape, &plan(&[view], shape, policy).unwrap());
        }
    }
    for policy in [SplitPolicy::FixedTokens(1), SplitPolicy::Count(usize::MAX)] {
        assert!(matches!(err(&[view], &fine, policy), ErrorKind::TooLarge { .. }));
        assert!(matches!(err(&[view; 9], &gla(), policy), ErrorKind::TooLarge { .. }));
    }
    // 2^22 parts of 2^16 rows pass the limit on items, but not 32 bits.
    let tall = PlanShape {
        rope_bytes: 0,
        row_tiles: vec![1 << 16],
        groups_per_workgroup: vec![1],
        room: vec![1],
        squads: vec![1; 1],
        short_tokens: vec![0; 1],
        short_workgroups: vec![1; 1],
        most_tokens: vec![u64::MAX; 1],
        ..gla()
    };
    let kv_len = 1 << 28;
    let kind = err(&[SeqView { kv_len, ..view }], &tall, SplitPolicy::FixedTokens(64));
    assert!(matches!(kind, ErrorKind::Argument { name: "split", .. }), "{kind}");

    let kind = err(&[SeqView { q_len: MAX, ..view }], &gla(), SplitPolicy::Off);
    assert!(matches!(kind, ErrorKind::Argument { name: "q_len", .. }), "{kind}");
    let kind = err(&[SeqView { q_token_first: MAX, ..view }], &gla(), SplitPolicy::Off);
    assert!(matches!(kind, ErrorKind::Argument { name: "q_token_first", .. }), "{kind}");
    let one = PlanShape {
        heads_per_group: 1,
        rope_bytes: 0,
        row_tiles: vec![1],
        groups_per_workgroup: vec![1],
        room: vec![1],
        squads: vec![1; 1],
        short_tokens: vec![0; 1],
        short_workgroups: vec![1; 1],
        most_tokens: vec![u64::MAX; 1],
        ..gla()
    };
    assert!(matches!(err(&[SeqView { q_len: MAX, ..view }], &one, SplitPolicy::Off), ErrorKind::TooLarge { .. }));
}
