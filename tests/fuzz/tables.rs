//! Sequences and pages, on the host alone.

use crate::numbers::Gen;
use latten::cache::SeqTable;
use latten::kv::tables::{PageTables, Region};
use latten::{KvSource, SeqId, SequenceOptions};

pub fn case(g: &mut Gen) {
    if g.one_in(8) {
        return arrays(g);
    }
    let (count, size) = (g.held(16, 64), g.near(4));
    let Some(mut table) = g.call("SeqTable::new", SeqTable::new(count, size)) else { return };
    let mut ids: Vec<SeqId> = (0..2).map(|_| table.insert()).collect();
    for _ in 0..g.below(12) {
        step(g, &mut table, &mut ids);
    }
}

fn step(g: &mut Gen, table: &mut SeqTable, ids: &mut Vec<SeqId>) {
    let id = g.pick(ids);
    let two = [id, g.pick(ids)];
    let ids_of_call = if g.one_in(2) { &two[..1] } else { &two[..] };
    // Not so many that a table of large pages could have them.
    let n = g.held(3, 40);
    match g.below(20) {
        0 => ids.push(table.insert()),
        1 => {
            let (window, keep_first) = (g.near(5), g.near(2));
            ids.extend(g.call(
                "SeqTable::insert_with",
                table.insert_with(SequenceOptions { window: Some(window), keep_first }),
            ));
        }
        2..=6 => {
            g.call("SeqTable::reserve", table.reserve(ids_of_call, n));
        }
        7 => {
            let wanted = [(id, n), (two[1], g.size())];
            g.call("SeqTable::pages_needed", table.pages_needed(&wanted));
        }
        8..=10 => {
            let n = g.near(table.reserved(id).unwrap_or(0));
            g.call("SeqTable::commit", table.commit(ids_of_call, n));
        }
        11 => {
            let tokens: Vec<u32> = (0..g.len(2)).map(|_| g.below(3) as u32).collect();
            g.call("SeqTable::commit_tokens", table.commit_tokens(&[(id, &tokens)]));
        }
        12 => {
            let len = g.near(table.len(id).unwrap_or(0));
            g.call("SeqTable::truncate", table.truncate(id, len));
        }
        13 => ids.extend(g.call("SeqTable::fork", table.fork(id))),
        14 => {
            let tokens: Vec<u32> = (0..g.below(12)).map(|_| g.below(3) as u32).collect();
            let salt = g.bits() % 2;
            ids.push(table.match_prefix(&tokens, salt));
        }
        15 => {
            g.call("SeqTable::pin", table.pin(id));
        }
        16 => {
            g.call("SeqTable::unpin", table.unpin(id));
        }
        17 => {
            let pages = g.near(16);
            g.call("SeqTable::set_page_limit", table.set_page_limit(pages));
        }
        18 => {
            g.call("SeqTable::remove", table.remove(id));
        }
        _ if g.one_in(8) => table.clear(),
        _ => {
            table.drop_kept();
        }
    }
    let _ = table.stats();
    g.call("SeqTable::gap", table.gap(id));
    g.call("SeqTable::tokens", table.tokens(id));
    g.call("SeqTable::batch", table.batch(ids_of_call));
}

/// Arrays of page tables, and regions of another one.
fn arrays(g: &mut Gen) {
    let mut arrays = [PageTables::default(), PageTables::default()];
    let mut regions = [Region::default(); 3];
    for _ in 0..6 {
        let (array, region) = (g.below(2), g.below(3));
        if g.one_in(4) {
            arrays[array].give_back(regions[region]);
            continue;
        }
        let table: Vec<u32> = (0..g.below(60)).map(|_| g.word()).collect();
        let same = g.near(0);
        let _ = arrays[array].write(&mut regions[region], &table, same);
        assert!(arrays[array].words().len() < 1 << 20 && regions[region].first() < 1 << 20);
    }
}
