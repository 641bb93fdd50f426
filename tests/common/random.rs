//! Seeded random numbers, the same on every machine.

/// A seed, and the generator's state after each draw.
pub struct Rng(pub u64);

impl Rng {
    pub fn next(&mut self) -> u64 {
        let mut random = fastrand::Rng::with_seed(self.0);
        let drawn = random.u64(..);
        self.0 = random.get_seed();
        drawn
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
        ((self.normal(1.0) * 256.0).round() / 256.0).clamp(-1018.0 / 256.0, 1018.0 / 256.0)
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
