//! Seeded random numbers, the same on every machine.

/// SplitMix64. Bounds of tests were measured on the numbers of this generator, and models of tests are made of them: another
/// one would be other models.
pub struct Rng(pub u64);

impl Rng {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub fn below(&mut self, n: usize) -> usize {
        (self.next() % n as u64) as usize
    }

    /// In [0, 1), exact in f32.
    pub fn uniform(&mut self) -> f32 {
        (self.next() >> 40) as f32 / (1u64 << 24) as f32
    }

    /// About normal with this deviation.
    pub fn normal(&mut self, deviation: f32) -> f32 {
        ((0..12).map(|_| f64::from(self.uniform())).sum::<f64>() - 6.0) as f32 * deviation
    }

    pub fn normals(&mut self, n: usize, deviation: f32) -> Vec<f32> {
        (0..n).map(|_| self.normal(deviation)).collect()
    }

    /// About normal, on a 1/256 grid and below 4: exact in f16 and f32.
    pub fn value(&mut self) -> f32 {
        let sum = (0..12).map(|_| 0.5 * (self.signed() + 1.0)).sum::<f64>() - 6.0;
        ((sum * 256.0).round() / 256.0).clamp(-1018.0 / 256.0, 1018.0 / 256.0) as f32
    }

    pub fn values(&mut self, n: usize) -> Vec<f32> {
        (0..n).map(|_| self.value()).collect()
    }

    /// In [-1, 1), for the f64 reference.
    pub fn signed(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1u64 << 52) as f64 - 1.0
    }

    pub fn many_signed(&mut self, n: usize) -> Vec<f64> {
        (0..n).map(|_| self.signed()).collect()
    }
}
