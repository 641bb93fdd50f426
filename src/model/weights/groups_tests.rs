//! Against `tests/vectors/groups.py`, which packs integers, zeros and scales of its own by the rules of AutoAWQ and AutoGPTQ, and
//! says what they stand for.

use super::*;
use serde_json::Value;

#[allow(clippy::duplicate_mod)] // of another file of tests, too
#[path = "../../../tests/common/checkout.rs"]
mod checkout;

fn hex(text: &Value) -> Vec<u8> {
    let text = text.as_str().unwrap();
    (0..text.len()).step_by(2).map(|i| u8::from_str_radix(&text[i..i + 2], 16).unwrap()).collect()
}

fn cases() -> Vec<Value> {
    serde_json::from_slice(&std::fs::read(checkout::checkout("tests/vectors/groups.json")).unwrap()).unwrap()
}

fn quantised(case: &Value) -> GroupQuantised {
    let packing = match case["packing"].as_str().unwrap() {
        "awq" => GroupPacking::Awq,
        "gptq" => GroupPacking::Gptq,
        _ => GroupPacking::GptqV2,
    };
    let in_dim = case["shape"][1].as_u64().unwrap() as usize;
    let group = case["group"].as_u64().unwrap() as usize;
    GroupQuantised { packing, group: (group != in_dim).then_some(group), ordered: false }
}

/// A file of these tensors, whose name, dtype, shape and bytes are given.
fn file(tensors: &[(&str, &str, Vec<usize>, Vec<u8>)]) -> Vec<u8> {
    let (mut header, mut offset) = (serde_json::Map::new(), 0);
    for (name, dtype, shape, bytes) in tensors {
        let end = offset + bytes.len();
        let info = serde_json::json!({"dtype": dtype, "shape": shape, "data_offsets": [offset, end]});
        header.insert((*name).into(), info);
        offset = end;
    }
    let header = Value::from(header).to_string();
    let mut all = (header.len() as u64).to_le_bytes().to_vec();
    all.extend(header.bytes());
    tensors.iter().for_each(|(.., bytes)| all.extend(bytes));
    all
}

type Tensor = (&'static str, &'static str, Vec<usize>, Vec<u8>);

fn tensors(case: &Value) -> Vec<Tensor> {
    let shape = |part: &Value| part["shape"].as_array().unwrap().iter().map(|n| n.as_u64().unwrap() as usize).collect();
    let part = |name: &'static str, key: &str, dtype| (name, dtype, shape(&case[key]), hex(&case[key]["bytes"]));
    vec![part("x.qweight", "qweight", "I32"), part("x.qzeros", "qzeros", "I32"), part("x.scales", "scales", "F16")]
}

fn order(in_dim: usize, group: impl Fn(usize) -> usize) -> Tensor {
    let numbers = (0..in_dim).flat_map(|input| (group(input) as i32).to_le_bytes()).collect();
    ("x.g_idx", "I32", vec![in_dim], numbers)
}

#[test]
fn matrices_stand_for_what_numpy_makes_of_them_to_the_last_bit() {
    for case in cases() {
        let name = format!("{} {} {}", case["packing"], case["group"], case["shape"]);
        let bytes = file(&tensors(&case));
        let files = WeightFiles::from_bytes("m.safetensors", &bytes).unwrap();
        let files = files.with_groups(quantised(&case)).unwrap();
        assert_eq!(files.names().collect::<Vec<_>>(), ["x.weight"]);
        let place = files.get("x.weight").unwrap();
        let Stored::Blocks(block) = place.stored else { panic!("{name}") };
        let (rows, in_dim) = (place.shape[0], place.shape[1]);
        assert_eq!(serde_json::json!([rows, in_dim]), case["shape"]);
        assert_eq!(block == BlockType::Q4_G128, in_dim.is_multiple_of(128) && case["group"].as_u64().unwrap() >= 128);
        let want: Vec<u32> =
            hex(&case["values"]).chunks_exact(4).map(|b| u32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect();
        // All rows, some of them, and those that begin or end inside a word.
        for cut in [0..rows, 0..8, 3..4, rows - 5..rows, 7..rows - 3] {
            if cut.end > rows || cut.start >= cut.end {
                continue;
            }
            let read = files.peek(place, cut.clone()).unwrap();
            let want = &want[cut.start * in_dim..cut.end * in_dim];
            let bits: Vec<u32> = place.stored.decoded(&read).iter().map(|v| v.to_bits()).collect();
            // A zero of a negative scale has a sign in one of the two ways.
            let same = |a: u32, b: u32| a == b || (a | b) << 1 == 0;
            assert!(bits.len() == want.len() && bits.iter().zip(want).all(|(a, b)| same(*a, *b)), "{name} {cut:?}");
            let exact = crate::reference::dequantised(&block.to_string(), &read).unwrap();
            assert!(exact.iter().zip(want).all(|(v, w)| *v == f64::from(f32::from_bits(*w))), "{name} {cut:?}");
            let mut counted = Vec::new();
            files
                .read_rows("x.weight", place, cut.clone(), &mut |part| {
                    counted.extend_from_slice(part);
                    Ok(())
                })
                .unwrap();
            assert_eq!(counted, read.as_ref());
        }
        assert_ne!(files.checksum(), 0);
    }
}

/// Of a file whose tensors are longer than what is wanted of a row, only that is read.
#[test]
fn few_rows_of_many_are_read_line_by_line() {
    let case = &cases()[0];
    let (out_dim, in_dim) = (512, 32);
    let numbers = |count: usize| (0..count).map(|i| (i * 7 / 3) as u8).collect::<Vec<u8>>();
    for packing in [GroupPacking::Awq, GroupPacking::Gptq] {
        let codes = if packing == GroupPacking::Awq { [in_dim, out_dim / 8] } else { [in_dim / 8, out_dim] };
        let all = [
            ("x.qweight", "I32", codes.to_vec(), numbers(in_dim * out_dim / 2)),
            ("x.qzeros", "I32", vec![1, out_dim / 8], numbers(out_dim / 2)),
            ("x.scales", "F16", vec![1, out_dim], [0x00, 0x2c].repeat(out_dim)),
        ];
        let bytes = file(&all);
        let kind = GroupQuantised { packing, group: Some(32), ..quantised(case) };
        let files = WeightFiles::from_bytes("m.safetensors", &bytes).unwrap().with_groups(kind).unwrap();
        let place = files.get("x.weight").unwrap();
        let whole = files.peek(place, 0..out_dim).unwrap();
        for cut in [0..1, 100..117, 509..512] {
            let part = files.peek(place, cut.clone()).unwrap();
            assert_eq!(part[..], whole[cut.start * place.row_bytes()..cut.end * place.row_bytes()], "{cut:?}");
        }
    }
}

#[test]
fn what_is_not_such_a_matrix_is_refused_by_its_name() {
    let cases = cases();
    let gptq = cases.iter().find(|case| case["packing"] == "gptq").unwrap();
    let (kind, in_dim) = (quantised(gptq), gptq["shape"][1].as_u64().unwrap() as usize);
    let of = |kind: GroupQuantised, tensors: &[Tensor]| {
        let bytes = file(tensors);
        let files = WeightFiles::from_bytes("m.safetensors", &bytes).unwrap().with_groups(kind);
        files.map(drop).map_err(|e| e.to_string())
    };
    let refused = |kind: GroupQuantised, change: &dyn Fn(&mut Vec<Tensor>), words: &[&str]| {
        let mut all = tensors(gptq);
        change(&mut all);
        let text = of(kind, &all).unwrap_err();
        assert!(
            text.contains("m.safetensors") && words.iter().all(|word| text.contains(word)),
            "{text}, not {words:?}"
        );
    };
    let group = kind.group.unwrap();
    of(kind, &[tensors(gptq), vec![order(in_dim, |input| input / group)]].concat()).unwrap();
    let by_activations = order(in_dim, |input| usize::from(input == 3));
    refused(kind, &|all| all.push(by_activations.clone()), &["x.g_idx", "input 3 in group 1, not 0", "desc_act"]);
    let ordered = GroupQuantised { ordered: true, ..kind };
    refused(ordered, &|_| {}, &["x.g_idx", "missing", "desc_act is true"]);
    of(ordered, &[tensors(gptq), vec![order(in_dim, |input| input / group)]].concat()).unwrap();
    refused(kind, &|all| all.push(order(in_dim - 1, |_| 0)), &["x.g_idx", "wanted (64) in I32"]);
    refused(kind, &|all| drop(all.remove(1)), &["x.qzeros", "missing, wanted (2,3)"]);
    refused(kind, &|all| all[2].1 = "BF16", &["x.scales", "in BF16, wanted (2,24) in F16"]);
    refused(kind, &|all| all[0].2 = vec![all[0].2.iter().product()], &["x.qweight", "wanted two sizes"]);
    refused(kind, &|all| all[1].2.reverse(), &["x.qzeros", "has shape (3,2)", "wanted (2,3)"]);
    let wide = GroupQuantised { group: Some(128), ..kind };
    refused(wide, &|_| {}, &["x.qweight", "inputs in groups of 128", "whole groups"]);
    refused(kind, &|all| all.push(("x.weight", "F16", vec![1], vec![0; 2])), &["x.weight", "is there beside"]);
}
