use super::raw::RawMessage;
use super::{Netlink, NetlinkError};
use crate::ids::IfIndex;

/// `RTM_GETQDISC` and `RTM_GETTFILTER` (`include/uapi/linux/rtnetlink.h`).
const GET_QDISC: u16 = 38;
const GET_FILTER: u16 = 46;

/// The length of `struct tcmsg`: family, device, handle, parent, info.
const HEADER: usize = 20;

/// `TCA_KIND`.
const KIND: u16 = 1;

/// `TC_H_ROOT`, `TC_H_INGRESS` (`include/uapi/linux/pkt_sched.h`).
const ROOT: u32 = 0xffff_ffff;
const INGRESS: u32 = 0xffff_fff1;

/// The part of a handle that names a qdisc.
const MAJOR: u32 = 0xffff_0000;

/// A message about traffic control.
type Message = RawMessage<HEADER>;

/// A queueing discipline at one of a device's own hooks; those below another one are not looked at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Qdisc {
    pub device: IfIndex,
    /// Such as `tbf`, `noqueue` or `clsact`.
    pub kind: String,
    pub place: Place,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// What the device sends passes it.
    Root {
        /// The kernel's own choice for the device: nobody has asked for it.
        is_default: bool,
    },
    /// It queues nothing, and holds filters.
    Filters,
}

/// Where filters are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hook {
    Ingress,
    Egress,
}

/// A filter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Filter {
    /// Such as `u32` or `bpf`.
    pub kind: String,
    pub priority: u32,
    pub handle: u32,
}

impl Netlink {
    /// The qdiscs of all devices.
    pub fn qdiscs(&mut self) -> Result<Vec<Qdisc>, NetlinkError> {
        let found: Vec<Message> = self.channel.dump(&Message::new(GET_QDISC, [0; HEADER]))?;
        Ok(found.iter().filter_map(qdisc).collect())
    }

    /// The filters at a hook of a device that has an `ingress` or `clsact` qdisc, those that it shares with others
    /// included. None when the device, or the qdisc, has gone.
    pub fn filters(&mut self, device: IfIndex, hook: Hook) -> Result<Vec<Filter>, NetlinkError> {
        // TC_H_MIN_INGRESS, TC_H_MIN_EGRESS; an `ingress` qdisc takes any of its own (net/sched/sch_ingress.c)
        let parent = INGRESS & MAJOR
            | match hook {
                Hook::Ingress => 0xfff2,
                Hook::Egress => 0xfff3,
            };
        let words = [0, device.0, 0, parent, 0].map(u32::to_ne_bytes);
        let mut header = [0; HEADER];
        header.copy_from_slice(words.as_flattened());
        match self.channel.dump::<Message>(&Message::new(GET_FILTER, header)) {
            Ok(found) => Ok(found.iter().filter_map(filter).collect()),
            Err(error) if error.is_missing() => Ok(Vec::new()),
            Err(error) => Err(error),
        }
    }
}

/// The `index`th word of the header.
fn word(message: &Message, index: usize) -> Option<u32> {
    message.header()?.as_chunks().0.get(index).copied().map(u32::from_ne_bytes)
}

fn qdisc(message: &Message) -> Option<Qdisc> {
    let place = match word(message, 3)? {
        // a qdisc that was asked for has a handle (qdisc_create() in net/sched/sch_api.c)
        ROOT => Place::Root { is_default: word(message, 2)? & MAJOR == 0 },
        INGRESS => Place::Filters,
        _ => return None,
    };
    Some(Qdisc { device: IfIndex(word(message, 1)?), kind: message.text(KIND)?, place })
}

fn filter(message: &Message) -> Option<Filter> {
    // 0: the classifier of a priority, which may hold no filter (tcf_chain_dump() in net/sched/cls_api.c)
    let handle = word(message, 2).filter(|handle| *handle != 0)?;
    // TC_H_MAKE(priority << 16, protocol)
    let priority = word(message, 4)? >> 16;
    Some(Filter { kind: message.text(KIND)?, priority, handle })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(words: [u32; 5], kind: &str) -> Message {
        let mut header = [0; HEADER];
        header.copy_from_slice(words.map(u32::to_ne_bytes).as_flattened());
        let mut message = Message::new(0, header);
        message.body.extend(u16::try_from(kind.len() + 5).unwrap().to_ne_bytes());
        message.body.extend(KIND.to_ne_bytes());
        message.body.extend(kind.bytes().chain([0]));
        message
    }

    #[test]
    fn a_qdisc_is_told_by_its_place_and_who_asked_for_it() {
        let found = |handle, parent, kind| qdisc(&message([0, 7, handle, parent, 1], kind)).map(|found| found.place);
        assert_eq!(found(0, ROOT, "noqueue"), Some(Place::Root { is_default: true }));
        assert_eq!(found(0x8001_0000, ROOT, "tbf"), Some(Place::Root { is_default: false }));
        assert_eq!(found(0xffff_0000, INGRESS, "clsact"), Some(Place::Filters));
        assert_eq!(found(0x10_0000, 0x8001_0001, "pfifo"), None, "below another one");
        let torn = Message { kind: 0, body: vec![0; HEADER - 1] };
        assert_eq!((qdisc(&torn), filter(&torn)), (None, None));
    }

    #[test]
    fn a_filters_priority_is_parted_from_its_protocol() {
        let found = filter(&message([0, 7, 0x8000_0800, 0xffff_fff2, 0x0003_0300], "u32")).unwrap();
        assert_eq!((found.kind.as_str(), found.priority, found.handle), ("u32", 3, 0x8000_0800));
        assert_eq!(filter(&message([0, 7, 0, 0xffff_fff2, 0x0003_0300], "u32")), None, "its classifier");
    }
}
