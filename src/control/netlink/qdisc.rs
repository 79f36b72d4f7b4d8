use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::tc::{TcAttribute, TcMessage};

use super::{Netlink, NetlinkError};
use crate::ids::IfIndex;

impl Netlink {
    /// The devices with a clsact qdisc: only these can have filters at their ingress.
    pub fn clsact_devices(&mut self) -> Result<Vec<IfIndex>, NetlinkError> {
        let objects = self.dump(&RouteNetlinkMessage::GetQueueDiscipline(TcMessage::default()))?;
        Ok(objects.into_iter().filter_map(clsact).collect())
    }
}

fn clsact(object: RouteNetlinkMessage) -> Option<IfIndex> {
    let RouteNetlinkMessage::NewQueueDiscipline(message) = object else { return None };
    let is_clsact = |attribute: &TcAttribute| matches!(attribute, TcAttribute::Kind(kind) if kind == "clsact");
    let index = u32::try_from(message.header.index).ok()?;
    message.attributes.iter().any(is_clsact).then_some(IfIndex(index))
}
