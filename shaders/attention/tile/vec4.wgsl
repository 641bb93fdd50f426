// Four rows' numbers of a lane in the tile's memory, which is done with as a tile: words of 16 bytes. Slot: attention/tile.

fn tile_put(lane: u32, wide: vec4<f32>) {
    tile[lane] = bitcast<vec4<u32>>(wide);
}

fn tile_get(lane: u32) -> vec4<f32> {
    return bitcast<vec4<f32>>(tile[lane]);
}
