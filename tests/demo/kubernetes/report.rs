//! The findings for people.

use std::fmt::{self, Display, Formatter};

use super::findings::Findings;

/// Tables of what was found, 100 columns at most.
pub struct Report<'a>(pub &'a Findings);

impl Display for Report<'_> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let Findings { podwire, kernel, kubernetes, events, reachability, streams, criteria } = self.0;
        writeln!(f, "\npodwire {podwire} on Linux {kernel}, {kubernetes}")?;
        writeln!(f, "\nHow soon the nodes followed, in ms")?;
        for event in events {
            write!(f, "  {:60}", event.what)?;
            for followed in &event.followed {
                let after = followed.after_ms.map_or("never".to_owned(), |after| after.to_string());
                write!(f, "  {} {after:>5}", followed.node)?;
            }
            writeln!(f)?;
        }
        writeln!(f, "\nWho reached whom")?;
        for when in reachability.chunk_by(|row, next| row.when == next.when) {
            let answered = when.iter().filter(|row| row.answered).count();
            writeln!(f, "  {:60}  {answered} of {} pairs", when[0].when, when.len())?;
            for row in when.iter().filter(|row| !row.answered) {
                writeln!(f, "    no answer: {} -> {} ({})", row.from, row.to, row.address)?;
            }
        }
        writeln!(f, "\nNumbered packets between pods of nodes a and b, while all of this happened")?;
        for (stream, way) in streams.streams.iter().zip(["a1 -> b1", "b1 -> a1"]) {
            writeln!(
                f,
                "  {way}  {:>9} sent, {} lost, {} twice, {} out of order, longest gap {:.1} ms",
                stream.sent, stream.lost, stream.duplicated, stream.reordered, stream.network_gap_ms
            )?;
        }
        writeln!(f, "\nCriteria")?;
        for criterion in criteria {
            writeln!(f, "  {}  {}", if criterion.met { "met " } else { "MISS" }, criterion.name)?;
        }
        Ok(())
    }
}
