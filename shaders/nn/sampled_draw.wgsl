// tokens[row] = one index drawn from softmax(shaped / temperature), cut by min_p, top_k, typical_p and top_p, in this order, each
// of what those before it left; the lowest index of the largest where temperature is 0; NO_TOKEN as `sample` has it.
// p_i = exp((l_i - max l) / temperature). min_p: every i with p_i >= min_p. top_k: every i with l_i at least the k-th largest.
// typical_p: with d_i = |ln p_i - mean of ln p|, every i with d_i <= t, for the least t that keeps typical_p of the mass.
// top_p: every i with p_i >= t, for the largest t that keeps top_p of the mass. Equal ones stay together in all of them.
// token = the first i, ascending, at which the cumulative mass of what is kept exceeds u times its mass.
// What is kept is one interval of logits (typical_p is one of places), so a bucket is in it, or out of it, or has an end of it:
// of whole buckets the sums are there, and only the members of the others are looked at.
//
// Grid: (rows).
// Constants: LANES, PART. Parts: top, row_top/parts, sampled_rows, sampled_places, sampled_sums.

struct Params {
    vocab: u32,
    row_stride: u32,
}
@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(2) var<storage, read> shaped: array<u32>;
@group(0) @binding(3) var<storage, read> buckets: array<vec4<u32>>;
@group(0) @binding(5) var<storage, read> sorted: array<f32>;
// u32: that of row r of the logits is tokens[r]
@group(0) @binding(6) var<storage, read_write> tokens: array<u32>;

const LARGEST = 3.4028234e38;
const COUNT = 0u;
const MASS = 1u;
const MOMENT = 2u;
// Of a bucket: how much of it is kept.
const NOTHING = 0u;
const WHOLE = 1u;
const SOME = 2u;

// Sums of the buckets of all parts, by kind.
var<workgroup> sums: array<f32, 3u * BUCKETS>;
var<workgroup> fates: array<u32, BUCKETS>;
// Buckets with an end of what is kept, a bit each.
var<workgroup> split: array<atomic<u32>, 2>;
// The part that the token is in, and the mass before it.
var<workgroup> picked: u32;
var<workgroup> picked_before: f32;

// What is kept of a row.
struct Cut {
    row: u32,
    largest: f32,
    temperature: f32,
    low: f32, // the least logit
    mean: f32, // and the places at most `spread` from `mean`
    spread: f32,
}

fn keeps(cut: Cut, value: f32) -> bool {
    let x = place(value, cut.largest, cut.temperature);
    return value >= cut.low && abs(x - cut.mean) <= cut.spread && x < LAST_PLACE;
}

fn fate_of(cut: Cut, bucket: u32) -> u32 {
    let end = bucket_of(place(cut.low, cut.largest, cut.temperature));
    let near = bucket_edge(bucket);
    let far = bucket_edge(bucket + 1u);
    if (bucket > end || near - cut.mean > cut.spread || cut.mean - far > cut.spread) {
        return NOTHING;
    }
    let inside = abs(near - cut.mean) <= cut.spread && abs(far - cut.mean) <= cut.spread;
    return select(SOME, WHOLE, inside && bucket < end);
}

fn weight(cut: Cut, value: f32, kind: u32) -> f32 {
    let x = place(value, cut.largest, cut.temperature);
    let p = exp(-x);
    return select(select(p * x, p, kind == MASS), 1.0, kind == COUNT);
}

fn parts_of_row() -> u32 {
    return (params.vocab + PART - 1u) / PART;
}

// Of the members of one bucket in one part that are kept.
fn members(cut: Cut, part: u32, bucket: u32, kind: u32) -> f32 {
    let entry = (cut.row * parts_of_row() + part) * BUCKETS + bucket;
    let start = cut.row * params.vocab + part * PART;
    var sum = 0.0;
    for (var i = buckets[entry].x; i < buckets[entry + 1u].x; i++) {
        let value = sorted[start + i];
        if (keeps(cut, value)) {
            sum += weight(cut, value, kind);
        }
    }
    return sum;
}

// The count, mass or moment of what is kept, in every lane.
fn kept_sum(cut: Cut, lane: u32, kind: u32) -> f32 {
    if (lane < 2u) {
        atomicStore(&split[lane], 0u);
    }
    workgroupBarrier();
    var own = 0.0;
    if (lane < DEAD) {
        let fate = fate_of(cut, lane);
        if (fate == WHOLE) {
            own = sums[kind * BUCKETS + lane];
        }
        if (fate == SOME) {
            atomicOr(&split[lane / 32u], 1u << (lane % 32u));
        }
    }
    workgroupBarrier();
    for (var half = 0u; half < 2u; half++) {
        var bits = atomicLoad(&split[half]);
        while (bits != 0u) {
            let bucket = 32u * half + firstTrailingBit(bits);
            bits &= bits - 1u;
            for (var part = lane; part < parts_of_row(); part += LANES) {
                own += members(cut, part, bucket, kind);
            }
        }
    }
    return sum_of_lanes(lane, own);
}

// The mass of what is kept of a part. fates are those of the cut.
fn part_mass(cut: Cut, part: u32) -> f32 {
    let entry = (cut.row * parts_of_row() + part) * BUCKETS;
    var sum = 0.0;
    for (var bucket = 0u; bucket < DEAD; bucket++) {
        let fate = fates[bucket];
        if (fate == WHOLE) {
            sum += bitcast<f32>(buckets[entry + bucket].y);
        }
        if (fate == SOME) {
            sum += members(cut, part, bucket, MASS);
        }
    }
    return sum;
}

// Floats in the order of these keys, and back.
fn key_of(value: f32) -> u32 {
    let bits = bitcast<u32>(value);
    return select(bits | 0x80000000u, ~bits, (bits & 0x80000000u) != 0u);
}

fn of_key(key: u32) -> f32 {
    return bitcast<f32>(select(~key, key & 0x7fffffffu, (key & 0x80000000u) != 0u));
}

// The largest `low` with which at least `wanted` is kept; the cut's own where not even that does.
fn raised(cut: Cut, lane: u32, kind: u32, wanted: f32) -> f32 {
    var raised = cut;
    var low = key_of(cut.low);
    var high = key_of(cut.largest) + 1u;
    for (var step = 0u; step < 32u; step++) {
        let middle = low + (high - low) / 2u;
        raised.low = of_key(middle);
        let enough = kept_sum(raised, lane, kind) >= wanted;
        low = select(low, middle, enough);
        high = select(middle, high, enough);
    }
    return of_key(low);
}

// The least spread with which at least `wanted` of the mass is kept.
fn spread_for(cut: Cut, lane: u32, wanted: f32) -> f32 {
    var spread = cut;
    var low = 0u;
    var high = bitcast<u32>(2.0 * LAST_PLACE);
    for (var step = 0u; step < 31u; step++) {
        let middle = low + (high - low) / 2u;
        spread.spread = bitcast<f32>(middle);
        let enough = kept_sum(spread, lane, MASS) >= wanted;
        high = select(high, middle, enough);
        low = select(middle + 1u, low, enough);
        low = min(low, high);
    }
    return bitcast<f32>(high);
}

// Sums of the buckets over the parts.
fn sum_buckets(row: u32, lane: u32) {
    let bucket = lane % BUCKETS;
    var own = vec3<f32>(0.0);
    for (var part = lane / BUCKETS; part < parts_of_row(); part += LANES / BUCKETS) {
        let entry = (row * parts_of_row() + part) * BUCKETS + bucket;
        let at = buckets[entry];
        // Of the last bucket no count is asked for.
        let end = buckets[min(entry + 1u, arrayLength(&buckets) - 1u)].x;
        own += vec3<f32>(f32(end - min(at.x, end)), bitcast<f32>(at.y), bitcast<f32>(at.z));
    }
    for (var kind = 0u; kind < 3u; kind++) {
        lane_value[lane] = own[kind];
        workgroupBarrier();
        if (lane < BUCKETS) {
            var sum = 0.0;
            for (var i = lane; i < LANES; i += BUCKETS) {
                sum += lane_value[i];
            }
            sums[kind * BUCKETS + lane] = sum;
        }
        workgroupBarrier();
    }
}

// The lane at which the sum of the lanes' values exceeds u times the whole, and the sum before it; LANES where none does.
struct Winner {
    lane: u32,
    before: f32,
    total: f32,
}

fn winner_of(lane: u32, own: f32, wanted: f32) -> Winner {
    lane_value[lane] = own;
    workgroupBarrier();
    var found = Winner(LANES, 0.0, 0.0);
    for (var i = 0u; i < LANES; i++) {
        let next = found.total + lane_value[i];
        if (found.lane == LANES && next > wanted) {
            found.lane = i;
            found.before = found.total;
        }
        found.total = next;
    }
    workgroupBarrier();
    return found;
}

@compute @workgroup_size(LANES)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let row = group.x;
    let temperature = head_number(row, TEMPERATURE);
    let best = row_top(0u, row, lane);
    if (temperature <= 0.0) {
        if (lane == 0u) {
            tokens[head(row, LOGITS_ROW)] = best.index;
        }
        return;
    }
    sum_buckets(row, lane);
    var cut = Cut(row, best.value, temperature, -LARGEST, 0.0, ALL_BELOW);
    let below = head_number(row, MOST_BELOW);
    if (below < LAST_PLACE) {
        cut.low = max(best.value - below * temperature, -LARGEST);
    }
    let top_k = head(row, TOP_K);
    if (top_k > 0u) {
        cut.low = raised(cut, lane, COUNT, f32(top_k));
    }
    let typical_p = head_number(row, TYPICAL_P);
    if (typical_p < 1.0) {
        let mass = kept_sum(cut, lane, MASS);
        var typical = cut;
        typical.mean = kept_sum(cut, lane, MOMENT) / mass;
        cut.spread = spread_for(typical, lane, typical_p * mass);
        cut.mean = typical.mean;
    }
    let top_p = head_number(row, TOP_P);
    if (top_p < 1.0) {
        let mass = kept_sum(cut, lane, MASS);
        cut.low = raised(cut, lane, MASS, top_p * mass);
    }

    // Each lane owns a run of parts, so that lane order is index order.
    if (lane < DEAD) {
        fates[lane] = fate_of(cut, lane);
    }
    if (lane == 0u) {
        picked = best.index / PART;
        picked_before = 0.0;
    }
    workgroupBarrier();
    let run = (parts_of_row() + LANES - 1u) / LANES;
    let first = min(lane * run, parts_of_row());
    let end = min(first + run, parts_of_row());
    var own = 0.0;
    for (var part = first; part < end; part++) {
        own += part_mass(cut, part);
    }
    let everything = winner_of(lane, own, LARGEST);
    let wanted = head_number(row, UNIFORM) * everything.total;
    let found = winner_of(lane, own, wanted);
    if (found.lane == lane) {
        var before = found.before;
        for (var part = first; part < end; part++) {
            let mass = part_mass(cut, part);
            // Rounding may leave the last sum of a run short: then its last part with anything stands.
            if (mass > 0.0) {
                picked = part;
                picked_before = before;
            }
            before += mass;
            if (before > wanted) {
                break;
            }
        }
    }
    workgroupBarrier();

    // And a run of the part's logits.
    let part = picked;
    let count = min(PART, params.vocab - min(part * PART, params.vocab));
    let own_run = (PART + LANES - 1u) / LANES;
    let start = min(lane * own_run, count);
    let stop = min(start + own_run, count);
    var mass = 0.0;
    for (var i = start; i < stop; i++) {
        let bits = shaped[row * params.vocab + part * PART + i];
        let value = bitcast<f32>(bits);
        if (bits != MINUS_INFINITY_BITS && keeps(cut, value)) {
            mass += weight(cut, value, MASS);
        }
    }
    let rest = wanted - picked_before;
    let taker = winner_of(lane, mass, rest);
    // Again the last that has anything, where rounding leaves it short.
    var last = 0u;
    for (var i = 0u; i < LANES; i++) {
        last = select(last, i, lane_value[i] > 0.0);
    }
    let chosen = select(taker.lane, last, taker.lane == LANES);
    if (lane != chosen) {
        return;
    }
    var token = best.index;
    var sum = select(taker.before, -LARGEST, taker.lane == LANES);
    for (var i = start; i < stop; i++) {
        let bits = shaped[row * params.vocab + part * PART + i];
        let value = bitcast<f32>(bits);
        if (bits != MINUS_INFINITY_BITS && keeps(cut, value)) {
            token = part * PART + i;
            sum += weight(cut, value, MASS);
            if (sum > rest) {
                break;
            }
        }
    }
    tokens[head(row, LOGITS_ROW)] = select(token, NO_TOKEN, best.index == NO_TOKEN);
}
