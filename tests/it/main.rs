//! The worker as its clients see it: the real router, queue, jobs, keys and SQLite, in one process; only the engine is
//! a fake.

mod addresses;
mod app;
mod bodies;
mod clocks;
mod connections;
mod console;
mod dashboard;
mod documented;
mod doors;
mod error_codes;
mod events;
mod fake_engine;
mod faults;
mod fields;
mod idempotency;
mod input_images;
mod jobs;
mod kubeconfig_script;
mod kubectl;
mod kubernetes;
mod limits;
mod management;
mod openai;
mod operations;
mod provenance;
mod recovery;
mod refusals;
mod revocation;
mod routes;
mod secrets;
mod spans;
mod storage;
mod stub_cluster;
mod terms;
mod waiting;
