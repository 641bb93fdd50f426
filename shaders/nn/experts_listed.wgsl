// What those who write and read a list of pairs by expert share. A pair is row * (experts of a row) + slot.
// An entry of the list that is no pair.
const NONE = 0xffffffffu;

// As nn/experts.wgsl has it, no id is beyond the experts that there are.
fn expert_of(pair: u32) -> u32 {
    return min(ids[pair], params.experts - 1u);
}
