# What people type. `just --list` shows it.

# what CI runs
default: fmt lint test

# put the code in shape
fmt:
    cargo fmt --all

# everything that needs no cluster and no root
lint:
    .ci/run check

# all tests: unit, network namespaces, real cluster (root)
test:
    cargo test --workspace

# boot a cluster, install, map three pods, fetch them from outside (root)
demo:
    cargo run --release -p e2e -- demo

# take the cluster down
down:
    cargo run --release -p e2e -- down
