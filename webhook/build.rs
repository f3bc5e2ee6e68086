//! How the program is linked.

use std::env;

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    let target = |part| env::var(format!("CARGO_CFG_TARGET_{part}")).unwrap_or_default();
    // the list of relocations, read at each start, shrinks from 0.7 MB to 20 KB; musl knows the
    // format since 1.2.4, and a linker that does not know the option says so and goes on
    if (target("ARCH").as_str(), target("ENV").as_str()) == ("x86_64", "musl") {
        println!("cargo:rustc-link-arg-bins=-Wl,-z,pack-relative-relocs");
    }
}
