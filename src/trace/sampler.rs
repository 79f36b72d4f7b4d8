/// Takes the first of so many packets, and then one of so many.
#[derive(Clone, Copy, Debug)]
pub struct Sampler {
    of: u32,
    pass_over: u32,
}

impl Sampler {
    pub fn new(of: u32) -> Self {
        Self { of, pass_over: 0 }
    }

    /// Whether the next packet is taken.
    pub fn takes(&mut self) -> bool {
        if self.pass_over > 0 {
            self.pass_over -= 1;
            return false;
        }
        self.pass_over = self.of.saturating_sub(1);
        true
    }
}
