//! What servers do with exports of any kind, by the reference adapter.

mod contexts;
mod devices;
mod layers;
mod lookup;
mod oldstyle;
mod resize;
mod visits;
