//! What a cluster needs before it can start: packages of the machine, programs built from pinned
//! sources, images. Everything is cached by the content of its inputs.

pub mod cache;
pub mod cni;
pub mod conformance;
pub mod go;
pub mod image;
pub mod packages;
pub mod rust;
