//! The product on a real cluster, seen from outside: kubectl, a client outside the cluster, and the
//! API server's own audit log.
//!
//! One cluster serves all tests. Most share it; a test that stops a part of the product runs
//! alone. `E2E_KUBECONFIG=FILE` runs the same tests against an existing cluster; those
//! that have to enter a node fail there with that reason.

mod admit_requests;
mod install_clusters;
mod install_helm;
mod install_release;
mod install_rollout;
mod install_test;
mod map_events;
mod map_families;
mod map_flows;
mod map_life;
mod map_nothing;
mod map_ports;
mod map_range;
mod map_ready;
mod map_results;
mod map_start;
mod map_static;
mod networks;
mod policy_account;
mod policy_missing;
mod policy_pods;
mod policy_rights;
mod policy_values;
mod reach;
mod reach_addresses;
mod reach_contest;
mod reach_firewall;
mod reach_replies;
mod refuse_forgery;
mod support;
mod survive_etcd;
mod survive_faults;
mod survive_flush;
mod survive_losses;
mod survive_node;
mod survive_rollout;
mod survive_rotation;
mod uninstall;
mod webhook_service;
