//! The node as a router: the few settings of the whole node that pods need.

use super::kernel::{Done, Kernel, KernelError, request};
use super::netlink::{MAIN_TABLE, RouteKind};
use super::sysctl;
use crate::config::{Config, Mode};

/// Routes learnt from router advertisements (`RTPROT_RA`).
const PROTOCOL_RA: u8 = 9;

impl Kernel {
    /// Turns forwarding on for the families that pods have, and sees to it that routes learnt
    /// from router advertisements survive that.
    pub(super) fn ensure_forwarding(&mut self, config: &Config, done: &mut Done) -> Result<(), KernelError> {
        let has = |ipv6| config.node.pod_cidrs.iter().any(|cidr| cidr.addr().is_ipv6() == ipv6);
        // Any other value than 0 is on.
        if has(false) && sysctl::read("ipv4/ip_forward")?.as_deref() == Some("0") {
            self.ensure_node_sysctl("ipv4/ip_forward", "1", done);
        }
        if has(true) && sysctl::read("ipv6/conf/all/forwarding")?.as_deref() == Some("0") {
            for name in self.devices_with_advertised_routes()? {
                // A router ignores advertisements unless it is told to heed them all the same
                // (`Documentation/networking/ip-sysctl.rst`, accept_ra).
                let key = format!("ipv6/conf/{name}/accept_ra");
                if sysctl::read(&key)?.as_deref() == Some("1") {
                    self.ensure_node_sysctl(&key, "2", done);
                }
            }
            self.ensure_node_sysctl("ipv6/conf/all/forwarding", "1", done);
        }
        // A peer on the link may send without the tunnel what this node sends it through: one that it sees behind a
        // gateway, or whose range is of the other family.
        let uplink = &config.node.uplink;
        if config.vxlan.direct_routing && sysctl::has_strict_rp_filter(uplink)? {
            self.ensure_node_sysctl(&sysctl::rp_filter(uplink), "2", done);
        }
        if config.dataplane.mode != Mode::Kernel {
            // Conntrack sees a flow only while it takes the kernel path. The sequence numbers that it sees then leap,
            // and what it finds invalid kube-proxy drops (Documentation/networking/nf_conntrack-sysctl.rst).
            self.ensure_node_sysctl("netfilter/nf_conntrack_tcp_be_liberal", "1", done);
        }
        Ok(())
    }

    fn devices_with_advertised_routes(&mut self) -> Result<Vec<String>, KernelError> {
        let routes = self.netlink.routes(MAIN_TABLE, PROTOCOL_RA).map_err(request("list advertised routes"))?;
        let mut links = self.netlink.links().map_err(request("list devices"))?;
        links.retain(|link| {
            let leads_there = |kind| matches!(kind, RouteKind::Via { device, .. } if device == link.index);
            routes.iter().any(|route| leads_there(route.kind))
        });
        Ok(links.into_iter().map(|link| link.name).collect())
    }
}
