//! A budget in requests and responses.

use serde::Serialize;
use utoipa::ToSchema;
use utoipa::openapi::schema::{AdditionalProperties, ObjectBuilder, Type};

use crate::auth::Change;
use crate::domain::budget::{BUDGET_MEGAPIXEL_STEPS_MAX, Budget, BudgetUse, InvalidBudget};
use crate::domain::money::Money;
use crate::domain::spec::FieldError;
use crate::http::error::ApiError;
use crate::http::extract::json::Fields;
use crate::http::openapi::schema::{integer, text};
use crate::http::state::HttpState;
use crate::usage::BudgetStanding;

pub(super) const BUDGET: &str = "budget";
const MEGAPIXEL_STEPS: &str = "megapixel_steps";
const MONEY: &str = "money";

/// The budget among limits.
pub(super) fn read(fields: &mut Fields) -> Option<Budget> {
    let mut budget = None;
    fields.nested(BUDGET, |fields| {
        let is_empty = fields.is_absent(MEGAPIXEL_STEPS) && fields.is_absent(MONEY);
        let (steps, money) = (fields.whole_number(MEGAPIXEL_STEPS), fields.word::<Money>(MONEY));
        budget = match (steps, money) {
            (Some(_), Some(_)) => {
                fields.refuse(MONEY, format!("cannot be given beside `{MEGAPIXEL_STEPS}`"));
                None
            }
            (Some(steps), None) => Some(Budget::MegapixelSteps(steps)),
            (None, Some(money)) => Some(Budget::Money(money)),
            (None, None) if is_empty => {
                fields.refuse(MEGAPIXEL_STEPS, format!("is required, or `{MONEY}`"));
                None
            }
            // What is wrong with the one that is there was said.
            (None, None) => None,
        };
        if let Some(Err(invalid)) = budget.map(Budget::check) {
            let field = if invalid == InvalidBudget::Money { MONEY } else { MEGAPIXEL_STEPS };
            fields.refuse(field, invalid.to_string());
        }
    });
    budget
}

/// The change to a budget: `null` removes it.
pub(super) fn read_change(fields: &mut Fields) -> Change<Budget> {
    if fields.is_null(BUDGET) { Change::Remove } else { read(fields).map_or(Change::Keep, Change::Set) }
}

/// Refuses a budget of money where nothing has a price.
pub(in crate::http) fn check_payable(state: &HttpState, budget: Option<Budget>) -> Result<(), ApiError> {
    if matches!(budget, Some(Budget::Money(_))) && state.usage.prices().is_none() {
        let reason = "needs prices: set `prices.per_megapixel_step` or `prices.per_engine_second` in the configuration";
        return Err(ApiError::invalid(vec![FieldError::new(format!("limits.{BUDGET}.{MONEY}"), reason)]));
    }
    Ok(())
}

/// The schema of a budget in a request.
pub(super) fn schema() -> ObjectBuilder {
    let steps = "Megapixel-steps, as the daily limit counts them.";
    let money = "An amount of money, like `25.50`, by the prices that the server has. A price per second of engine time \
                 counts when a job has ended.";
    ObjectBuilder::new()
        .schema_type(Type::Object)
        .description(Some("What may be used up in a calendar month, UTC: one of the two."))
        .additional_properties(Some(AdditionalProperties::FreeForm(false)))
        .property(MEGAPIXEL_STEPS, integer(1).maximum(Some(BUDGET_MEGAPIXEL_STEPS_MAX)).description(Some(steps)))
        .property(MONEY, text().description(Some(money)))
}

/// A budget for a calendar month: one of the two.
#[derive(Serialize, ToSchema)]
#[schema(as = Budget)]
pub(in crate::http) struct BudgetView {
    #[serde(skip_serializing_if = "Option::is_none")]
    megapixel_steps: Option<u64>,
    /// In the currency of the prices.
    #[serde(skip_serializing_if = "Option::is_none")]
    money: Option<String>,
}

impl From<Budget> for BudgetView {
    fn from(budget: Budget) -> Self {
        match budget {
            Budget::MegapixelSteps(steps) => Self { megapixel_steps: Some(steps), money: None },
            Budget::Money(money) => Self { megapixel_steps: None, money: Some(money.to_string()) },
        }
    }
}

/// How much of a budget is used in the present month.
#[derive(Serialize, ToSchema)]
#[schema(as = BudgetUse)]
pub(in crate::http) struct BudgetUseView {
    /// The UTC month, as in `2030-01`.
    month: String,
    budget: BudgetView,
    /// What ended jobs have used.
    used: UsedView,
    /// The share that is used; 1 or more: no job is accepted. `null` for a budget of money without prices.
    share: Option<f64>,
}

/// What is used, in both units.
#[derive(Serialize, ToSchema)]
#[schema(as = Used)]
struct UsedView {
    megapixel_steps: f64,
    /// `null` without prices.
    money: Option<String>,
}

impl BudgetUseView {
    pub(in crate::http) fn of(state: &HttpState, standing: &BudgetStanding) -> Self {
        let BudgetStanding { budget, month, work, used } = standing;
        Self {
            month: month.to_string(),
            budget: (*budget).into(),
            used: UsedView {
                megapixel_steps: work.megapixel_steps(),
                money: state.usage.prices().map(|prices| prices.cost(work).to_string()),
            },
            share: used.map(BudgetUse::share),
        }
    }
}
