//! The pipeline over memory ports: what every kind of packet becomes, that each drop has its reason, that frames are
//! conserved, and that nothing allocates.

mod allocation;
mod direct;
mod drops;
mod hostile;
mod journey;
mod received;
mod stages;
mod world;
