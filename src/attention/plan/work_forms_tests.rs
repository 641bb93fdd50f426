//! Which of its kernels a class takes.

use super::*;

/// A device that few sequences leave idle, with squads for classes that are not the tallest.
fn large() -> PlanShape {
    PlanShape {
        groups: 4,
        heads_per_group: 4,
        groups_per_workgroup: vec![4, 1, 1],
        room: vec![4, 1, 1],
        squads: vec![8, 8, 1],
        target_workgroups: 1056,
        ..gqa()
    }
}

/// The plan of sequences of so many tokens, checked.
fn planned(shape: &PlanShape, lengths: &[u32], policy: SplitPolicy) -> WorkList {
    let list = plan(&decode(lengths), shape, policy).unwrap();
    check_plan(&decode(lengths), shape, &list);
    list
}

/// One sequence leaves a large device idle: squads share its tokens. Where a batch fills the device, and under policies that say
/// how to cut, each squad has an item of its own.
#[test]
fn squads_share_the_tokens_of_few_items() {
    let planned = |lengths: &[u32], policy| planned(&large(), lengths, policy);
    for length in [1, 128, 4096] {
        let first = if length > 1 { KernelForm::Squads } else { KernelForm::Usual };
        assert_eq!(
            planned(&[length], SplitPolicy::Auto).forms,
            [first, KernelForm::Usual, KernelForm::Usual],
            "{length}"
        );
    }
    assert!(planned(&[128], SplitPolicy::Auto).merges.is_empty());
    for policy in [SplitPolicy::Off, SplitPolicy::Count(4), SplitPolicy::FixedTokens(256)] {
        assert!(!planned(&[4096], policy).forms.contains(&KernelForm::Squads), "{policy:?}");
    }
    assert!(!planned(&[8192; 512], SplitPolicy::Auto).forms.contains(&KernelForm::Squads));
}

/// Few items of few tokens are not cut, and take the third form; so do the parts of longer ones, if they are short enough.
#[test]
fn few_short_items_take_a_form_of_their_own() {
    let shape = PlanShape { short_tokens: vec![256, 256, 0], short_workgroups: vec![4, 8, 4], ..large() };
    let planned = |lengths: &[u32], policy| {
        let list = planned(&shape, lengths, policy);
        (list.forms[0], list.merges.len())
    };
    for length in [1, 128, 256] {
        assert_eq!(planned(&[length], SplitPolicy::Auto), (KernelForm::Short, 0), "{length}");
        assert_eq!(planned(&[length, 3], SplitPolicy::Auto), (KernelForm::Short, 0), "{length}");
    }
    assert_eq!(planned(&[4096], SplitPolicy::Auto), (KernelForm::Short, 1));
    assert_ne!(planned(&[16_384], SplitPolicy::Auto).0, KernelForm::Short);
    assert_ne!(planned(&[1 << 20], SplitPolicy::Auto).0, KernelForm::Short);
    for policy in [SplitPolicy::Off, SplitPolicy::Count(4), SplitPolicy::FixedTokens(256)] {
        assert_eq!(planned(&[128], policy).0, KernelForm::Usual, "{policy:?}");
    }
    assert_eq!(planned(&[128; 2000], SplitPolicy::Auto), (KernelForm::Usual, 0));
}
