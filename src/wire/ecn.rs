/// Explicit congestion notification: the two low bits of the TOS or traffic class (RFC 3168 section 5).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ecn {
    NotEct = 0b00,
    Ect1 = 0b01,
    Ect0 = 0b10,
    Ce = 0b11,
}

/// Congestion was signalled on a packet whose end points do not take part: drop it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IllegalEcn;

impl Ecn {
    /// The codepoint in the low bits of a TOS or traffic class.
    #[inline]
    pub fn from_tos(tos: u8) -> Self {
        match tos & 0b11 {
            0b00 => Self::NotEct,
            0b01 => Self::Ect1,
            0b10 => Self::Ect0,
            _ => Self::Ce,
        }
    }

    /// `tos` with this codepoint in its low bits.
    #[inline]
    pub fn in_tos(self, tos: u8) -> u8 {
        tos & !0b11 | self as u8
    }

    /// The outer codepoint for a packet of this inner codepoint: normal mode, a copy
    /// (RFC 6040 section 4.1).
    #[inline]
    #[must_use]
    pub fn encapsulate(self) -> Self {
        self
    }

    /// The codepoint to deliver for an `inner` packet that came in an `outer` one
    /// (RFC 6040 section 4.2, figure 4).
    #[inline]
    pub fn decapsulate(outer: Self, inner: Self) -> Result<Self, IllegalEcn> {
        match (outer, inner) {
            (Self::Ce, Self::NotEct) => Err(IllegalEcn),
            (Self::Ce, _) => Ok(Self::Ce),
            (Self::Ect1, Self::Ect0) => Ok(Self::Ect1),
            (_, inner) => Ok(inner),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Ecn::{self, Ce, Ect0, Ect1, NotEct};
    use super::IllegalEcn;

    #[test]
    fn decapsulation_is_figure_4_of_rfc_6040() {
        let columns = [NotEct, Ect0, Ect1, Ce];
        let rows: [(Ecn, [Result<Ecn, IllegalEcn>; 4]); 4] = [
            (NotEct, [Ok(NotEct), Ok(NotEct), Ok(NotEct), Err(IllegalEcn)]),
            (Ect0, [Ok(Ect0), Ok(Ect0), Ok(Ect1), Ok(Ce)]),
            (Ect1, [Ok(Ect1), Ok(Ect1), Ok(Ect1), Ok(Ce)]),
            (Ce, [Ok(Ce), Ok(Ce), Ok(Ce), Ok(Ce)]),
        ];
        for (inner, delivered) in rows {
            for (outer, expected) in columns.into_iter().zip(delivered) {
                assert_eq!(Ecn::decapsulate(outer, inner), expected, "outer {outer:?}, inner {inner:?}");
            }
        }
    }

    #[test]
    fn the_outer_codepoint_is_the_inner_one() {
        for tos in 0..=u8::MAX {
            let ecn = Ecn::from_tos(tos);
            assert_eq!(ecn.encapsulate(), ecn);
            assert_eq!(ecn.in_tos(tos), tos);
            assert_eq!(Ecn::from_tos(ecn.in_tos(!tos)), ecn);
            assert_eq!(ecn.in_tos(!tos) >> 2, !tos >> 2);
        }
    }
}
