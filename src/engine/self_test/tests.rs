use std::cell::Cell;

use candle_core::{Tensor, bail};

use super::operation::Numbers;
use super::*;
use OperationGroup::{AttentionHopper, Autoencoder, Fp8, Portable, Products};

fn events(choice: DeviceChoice, kernels: Kernels, groups: &[OperationGroup]) -> Vec<OperationEvent> {
    let mut events = Vec::new();
    run_operations(choice, kernels, groups, &mut |event| events.push(event)).expect("the CPU is there");
    events
}

#[test]
fn the_cpu_agrees_with_itself_in_every_group() {
    let events = events(DeviceChoice::Cpu, Kernels::Auto, &OperationGroup::ALL);
    let reports: Vec<OperationReport> = events
        .into_iter()
        .map(|event| match event {
            OperationEvent::Done(report) => report,
            other => panic!("{other:?}"),
        })
        .collect();
    for group in OperationGroup::ALL {
        let of_group = reports.iter().filter(|report| report.group == group);
        assert!(of_group.count() >= 2, "{group}");
    }
    assert_eq!(reports.len(), operations().len());
    for report in reports {
        let is_right = report.error == Some(0.0) && report.failure.is_none() && report.milliseconds > Some(0.0);
        assert!(is_right, "{report:?}");
    }
}

#[test]
fn no_two_operations_of_a_group_have_one_name() {
    let mut names: Vec<_> = operations().iter().map(|operation| (operation.group.name(), operation.name)).collect();
    names.sort_unstable();
    let all = names.len();
    names.dedup();
    assert_eq!(names.len(), all, "{names:?}");
}

// Planted operations.

fn operand(numbers: &Numbers) -> Result<Vec<Tensor>> {
    Ok(vec![numbers.random(1, &[8, 16])?])
}

const fn planted(group: OperationGroup, name: &'static str, op: fn(&[Tensor]) -> Result<Tensor>) -> Operation {
    Operation { group, name, operands: operand, op, roundings: 1.0 }
}

const RIGHT: Operation = planted(Portable, "right", |x| x[0].sqr());
const LAST: Operation = planted(Products, "last", |x| x[0].sqr());

/// Runs planted operations; the device answers as often as `answers` says after a fault.
fn run(operations: &[&Operation], groups: &[OperationGroup], answers: usize) -> Vec<OperationEvent> {
    let (mut events, waits) = (Vec::new(), Cell::new(0));
    let wait = || {
        waits.set(waits.get() + 1);
        if waits.get() > answers {
            bail!("CUDA_ERROR_ILLEGAL_ADDRESS");
        }
        Ok(())
    };
    let why_not = |group| (group == Fp8).then(|| "no".to_owned());
    let target = Target { device: &Device::Cpu, dtype: DType::F32, wait: &wait };
    Run { target, why_not: &why_not, on_event: &mut |event| events.push(event) }.groups(groups, operations);
    events
}

/// Each event: the operation with its failure, or the words of another event.
fn said(events: &[OperationEvent]) -> Vec<(&'static str, String)> {
    let words = |event: &OperationEvent| match event {
        OperationEvent::Done(report) => (report.name, report.failure.clone().unwrap_or_default()),
        OperationEvent::Skipped { group, reason } => (group.name(), format!("skipped: {reason}")),
        OperationEvent::Stopped { group, reason, left } => (group.name(), format!("stopped: {reason}, left {left:?}")),
    };
    events.iter().map(words).collect()
}

#[test]
fn an_operation_that_fails_leaves_the_others() {
    let failing = planted(Portable, "failing", |_| bail!("no such launch"));
    let events = run(&[&failing, &RIGHT, &LAST], &[Portable, Products], usize::MAX);
    let expected = [("failing", "no such launch".to_owned()), ("right", String::new()), ("last", String::new())];
    assert_eq!(said(&events), expected);
    let OperationEvent::Done(report) = &events[0] else { panic!("{events:?}") };
    assert_eq!((report.error, report.milliseconds, report.tolerance), (None, None, F32_TOLERANCE));
}

/// The first call is the CPU's, the second the device's.
fn second_time(other: fn(&Tensor) -> Result<Tensor>, x: &[Tensor]) -> Result<Tensor> {
    thread_local!(static CALLS: Cell<usize> = const { Cell::new(0) });
    CALLS.set(CALLS.get() + 1);
    if CALLS.get().is_multiple_of(2) { other(&x[0]) } else { Ok(x[0].clone()) }
}

#[test]
fn wrong_results_and_nan_are_faults_and_the_rest_goes_on() {
    let wrong = planted(Portable, "wrong", |x| second_time(|x| x * 1.001, x));
    let nan = planted(Portable, "NaN", |x| second_time(|x| x * f64::NAN, x));
    let smaller = planted(Portable, "smaller", |x| second_time(|x| x.narrow(0, 0, 4), x));
    let events = run(&[&wrong, &nan, &smaller, &RIGHT], &[Portable], usize::MAX);
    let said = said(&events);
    assert_eq!(said[0], ("wrong", "is 0.100 % off, and rounding explains 0.001 %".to_owned()));
    assert_eq!(said[1], ("NaN", "128 values are not finite".to_owned()));
    assert_eq!(said[2], ("smaller", "the result has the shape [4, 16] instead of [8, 16]".to_owned()));
    assert_eq!(said[3], ("right", String::new()));
}

#[test]
fn groups_run_in_the_order_asked_for_and_a_skipped_one_says_why() {
    let events = run(&[&RIGHT, &LAST], &[Products, Fp8, Portable], usize::MAX);
    let expected = [("last", String::new()), ("fp8", "skipped: no".to_owned()), ("right", String::new())];
    assert_eq!(said(&events), expected);
}

#[test]
fn a_device_that_answers_no_more_stops_the_run_and_the_rest_is_named() {
    let failing = planted(Portable, "failing", |_| bail!("CUDA_ERROR_ILLEGAL_ADDRESS"));
    let after = planted(Portable, "after", |x| x[0].sqr());
    // Two waits for each operation that ends.
    let events = run(&[&RIGHT, &failing, &after, &LAST], &[Portable, Products], 2);
    let left = [(Portable, "after"), (Products, "last")];
    let expected = [
        ("right", String::new()),
        ("failing", "CUDA_ERROR_ILLEGAL_ADDRESS".to_owned()),
        ("portable", format!("stopped: CUDA_ERROR_ILLEGAL_ADDRESS, left {left:?}")),
    ];
    assert_eq!(said(&events), expected);
    // A fault that only shows when the device is waited for belongs to the operation that was waited for.
    let events = run(&[&RIGHT, &LAST], &[Portable, Products], 1);
    assert_eq!(said(&events)[0], ("right", "CUDA_ERROR_ILLEGAL_ADDRESS".to_owned()));
    assert!(matches!(&events[1], OperationEvent::Stopped { left, .. } if *left == [(Products, "last")]), "{events:?}");
    // So does one that appears while a precision is tried.
    let events = run(&[&RIGHT], &[Fp8, Portable], 0);
    assert!(matches!(&events[..], [OperationEvent::Stopped { group: Fp8, .. }]), "{events:?}");
}

#[test]
fn reports_have_the_fields_that_scripts_read() {
    let events = run(&[&RIGHT], &[Portable], usize::MAX);
    let OperationEvent::Done(report) = &events[0] else { panic!("{events:?}") };
    let json = serde_json::to_value(report).expect("JSON");
    let keys: Vec<&str> = json.as_object().expect("an object").keys().map(String::as_str).collect();
    assert_eq!(keys, ["error", "failure", "group", "milliseconds", "operation", "tolerance"]);
    assert_eq!((&json["group"], &json["operation"]), (&"portable".into(), &"right".into()));
    let report = OperationReport { error: Some(f64::NAN), ..report.clone() };
    assert!(serde_json::to_value(report).expect("JSON")["error"].is_null());
}

#[test]
fn the_cpu_leaves_no_group_out() {
    for group in [AttentionHopper, Autoencoder, Fp8] {
        assert_eq!(why_not(&Device::Cpu, Kernels::Portable, group), None);
    }
}
