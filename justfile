# Short names for common commands. `just --list` shows them.

# what CI runs
default: fmt
    .ci/run

# format the code
fmt:
    cargo fmt --all

# checks and the unit tests of the libraries: no cluster, no root
lint:
    .ci/run check

# all tests: units, network namespaces, real cluster (root)
test:
    cargo test --workspace

# start a cluster, install portmapping, map three pods, fetch a page from each (root)
demo:
    cargo run --release -p e2e -- demo

# stop the cluster and remove it
down:
    cargo run --release -p e2e -- down
