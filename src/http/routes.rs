//! The table of routes: each row has a handler and its part of the OpenAPI document.

use axum::routing::{MethodRouter, delete, get, patch, post};

use super::openapi::{self, Operation};
use super::route::{Access, Route};
use super::state::HttpState;
use super::{admin, api, console};

/// A route, its handler, and its part of the OpenAPI document.
pub(super) type Row = (Route, MethodRouter<HttpState>, Operation);

fn row(
    access: Access,
    method: &'static str,
    path: &'static str,
    handler: MethodRouter<HttpState>,
    operation: Operation,
) -> Row {
    (Route { method, path, access }, handler, operation)
}

/// All routes with their part of the OpenAPI document.
pub(super) fn table() -> Vec<Row> {
    [client_table(), management_table(), worker_table(), sdapi_table()].into_iter().flatten().collect()
}

/// The routes of those who have images generated.
#[rustfmt::skip]
fn client_table() -> Vec<Row> {
    use Access::{Anyone, Inference, InferenceOrLink};
    use api::openai::{edits, images, models, variations};
    use api::{catalog, events, inference, jobs, loras, uploads, webhooks};
    vec![
        row(Inference,       "POST",   "/v1/inference/image",                                      post(inference::submit),      inference::submit_operation()),
        row(Inference,       "GET",    "/v1/inference/jobs",                                       get(jobs::list),              jobs::list_operation()),
        row(Inference,       "GET",    "/v1/inference/jobs/{job_id}",                              get(jobs::show),              jobs::show_operation()),
        row(Inference,       "DELETE", "/v1/inference/jobs/{job_id}",                              delete(jobs::cancel),         jobs::cancel_operation()),
        row(Inference,       "GET",    "/v1/inference/jobs/{job_id}/events",                       get(events::follow),          events::follow_operation()),
        row(InferenceOrLink, "GET",    "/v1/inference/jobs/{job_id}/result",                       get(jobs::result),            jobs::result_operation()),
        row(Inference,       "GET",    "/v1/inference/loras",                                      get(loras::list),             loras::list_operation()),
        row(Inference,       "GET",    "/v1/inference/uploads",                                    get(uploads::list),           uploads::list_operation()),
        row(Inference,       "POST",   "/v1/inference/uploads",                                    post(uploads::add),           uploads::add_operation()),
        row(Inference,       "DELETE", "/v1/inference/uploads/{upload_id}",                        delete(uploads::remove),      uploads::remove_operation()),
        row(Inference,       "GET",    "/v1/inference/deliveries",                                 get(webhooks::list),          webhooks::list_operation()),
        row(Inference,       "POST",   "/v1/inference/deliveries/{delivery_id}/resend",            post(webhooks::resend),       webhooks::resend_operation()),
        row(Anyone,          "GET",    "/v1/inference/models",                                     get(catalog::models),         catalog::models_operation()),
        row(Anyone,          "GET",    "/v1/inference/runtime/models",                             get(catalog::runtime_models), catalog::runtime_models_operation()),
        row(Inference,       "POST",   "/v1/images/generations",                                   post(images::generate),       images::generate_operation()),
        row(Inference,       "POST",   "/v1/images/edits",                                         post(edits::edit),            edits::edit_operation()),
        row(Inference,       "POST",   "/v1/images/variations",                                    post(variations::vary),       variations::vary_operation()),
        row(Anyone,          "GET",    "/v1/models",                                               get(models::list),            models::list_operation()),
        row(Anyone,          "GET",    "/v1/models/{*model}",                                      get(models::show),            models::show_operation()),
    ]
}

/// The routes behind the console, and what a cluster asks.
#[rustfmt::skip]
fn management_table() -> Vec<Row> {
    use Access::{Kubernetes, Session, SignIn};
    use admin::{api_keys, audit, jobs, kubernetes, loras, overview, playground, projects, session, usage, usage_report, webhooks};
    use api::exec_credential;
    vec![
        row(SignIn,          "POST",   "/v1/session",                                              post(session::sign_in),       session::sign_in_operation()),
        row(Session,         "GET",    "/v1/session",                                              get(session::show),           session::show_operation()),
        row(Session,         "DELETE", "/v1/session",                                              delete(session::sign_out),    session::sign_out_operation()),
        row(Session,         "GET",    "/v1/api-keys",                                             get(api_keys::list),          api_keys::list_operation()),
        row(Session,         "POST",   "/v1/api-keys",                                             post(api_keys::create),       api_keys::create_operation()),
        row(Session,         "GET",    "/v1/api-keys/{key_id}",                                    get(api_keys::show),          api_keys::show_operation()),
        row(Session,         "PATCH",  "/v1/api-keys/{key_id}",                                    patch(api_keys::edit),        api_keys::edit_operation()),
        row(Session,         "DELETE", "/v1/api-keys/{key_id}",                                    delete(api_keys::revoke),     api_keys::revoke_operation()),
        row(Session,         "POST",   "/v1/api-keys/{key_id}/rotate",                             post(api_keys::rotate),       api_keys::rotate_operation()),
        row(Session,         "GET",    "/v1/api-keys/{key_id}/usage",                              get(usage::show),             usage::show_operation()),
        row(Session,         "GET",    "/v1/usage",                                                get(usage_report::show),      usage_report::show_operation()),
        row(Session,         "GET",    "/v1/projects",                                             get(projects::list),          projects::list_operation()),
        row(Session,         "POST",   "/v1/projects",                                             post(projects::create),       projects::create_operation()),
        row(Session,         "GET",    "/v1/projects/{project_id}",                                get(projects::show),          projects::show_operation()),
        row(Session,         "PATCH",  "/v1/projects/{project_id}",                                patch(projects::edit),        projects::edit_operation()),
        row(Session,         "DELETE", "/v1/projects/{project_id}",                                delete(projects::remove),     projects::remove_operation()),
        row(Session,         "GET",    "/v1/api-keys/{key_id}/webhook",                            get(webhooks::show),      webhooks::show_operation()),
        row(Session,         "PATCH",  "/v1/api-keys/{key_id}/webhook",                            patch(webhooks::edit),    webhooks::edit_operation()),
        row(Session,         "POST",   "/v1/api-keys/{key_id}/webhook/secret",                     post(webhooks::make_secret), webhooks::make_secret_operation()),
        row(Session,         "POST",   "/v1/api-keys/{key_id}/webhook/test",                       post(webhooks::test),     webhooks::test_operation()),
        row(Session,         "GET",    "/v1/api-keys/{key_id}/deliveries",                         get(webhooks::deliveries), webhooks::deliveries_operation()),
        row(Session,         "POST",   "/v1/api-keys/{key_id}/deliveries/{delivery_id}/resend",    post(webhooks::resend),   webhooks::resend_operation()),
        row(Session,         "GET",    "/v1/loras",                                                get(loras::list),             loras::list_operation()),
        row(Session,         "POST",   "/v1/loras",                                                post(loras::add),             loras::add_operation()),
        row(Session,         "GET",    "/v1/loras/{lora_id}",                                      get(loras::show),             loras::show_operation()),
        row(Session,         "DELETE", "/v1/loras/{lora_id}",                                      delete(loras::remove),        loras::remove_operation()),
        row(Session,         "GET",    "/v1/loras/{lora_id}/thumbnail",                            get(loras::thumbnail),        loras::thumbnail_operation()),
        row(Session,         "GET",    "/v1/kubernetes",                                           get(kubernetes::cluster),     kubernetes::cluster_operation()),
        row(Session,         "GET",    "/v1/kubernetes/namespaces",                                get(kubernetes::list),        kubernetes::list_operation()),
        row(Session,         "POST",   "/v1/kubernetes/namespaces",                                post(kubernetes::create),     kubernetes::create_operation()),
        row(Session,         "PATCH",  "/v1/kubernetes/namespaces/{namespace_id}",                 patch(kubernetes::edit),      kubernetes::edit_operation()),
        row(Session,         "DELETE", "/v1/kubernetes/namespaces/{namespace_id}",                 delete(kubernetes::remove),   kubernetes::remove_operation()),
        row(Session,         "GET",    "/v1/kubernetes/namespaces/{namespace_id}/kubeconfig",      get(kubernetes::kubeconfig),  kubernetes::kubeconfig_operation()),
        row(Kubernetes,      "POST",   "/v1/kubernetes/namespaces/{namespace_id}/exec-credential", post(exec_credential::issue), exec_credential::issue_operation()),
        row(Session,         "GET",    "/v1/audit",                                                get(audit::list),             audit::list_operation()),
        row(Session,         "GET",    "/v1/overview",                                             get(overview::show),          overview::show_operation()),
        row(Session,         "POST",   "/v1/playground/image",                                     post(playground::submit),     playground::submit_operation()),
        row(Session,         "GET",    "/v1/jobs",                                                 get(jobs::list),          jobs::list_operation()),
        row(Session,         "GET",    "/v1/jobs/{job_id}",                                        get(jobs::show),          jobs::show_operation()),
        row(Session,         "DELETE", "/v1/jobs/{job_id}",                                        delete(jobs::cancel),     jobs::cancel_operation()),
        row(Session,         "GET",    "/v1/jobs/{job_id}/events",                                 get(jobs::follow),        jobs::follow_operation()),
        row(Session,         "GET",    "/v1/jobs/{job_id}/preview",                                get(jobs::preview),       jobs::preview_operation()),
        row(Session,         "GET",    "/v1/jobs/{job_id}/result",                                 get(jobs::result),        jobs::result_operation()),
    ]
}

/// The console's page, the API's document, and the routes of those who watch the worker.
#[rustfmt::skip]
fn worker_table() -> Vec<Row> {
    use Access::{Anyone, Metrics, Page};
    use api::health;
    vec![
        row(Page,            "GET",    "/admin",                                                   get(self::console::page),     self::console::page_operation()),
        row(Page,            "GET",    "/admin/assets/{file}",                                     get(self::console::asset),    self::console::asset_operation()),
        row(Anyone,          "GET",    "/openapi.json",                                            get(openapi::serve),          openapi::serve_operation()),
        row(Anyone,          "GET",    "/healthz",                                                 get(health::alive),           health::alive_operation()),
        row(Anyone,          "GET",    "/readyz",                                                  get(health::ready),           health::ready_operation()),
        row(Metrics,         "GET",    "/metrics",                                                 get(health::metrics),         health::metrics_operation()),
    ]
}

/// The routes of AUTOMATIC1111's API, which exist only where the operator wants them.
#[rustfmt::skip]
fn sdapi_table() -> Vec<Row> {
    use Access::Inference;
    use api::sdapi::generate::{self, image_to_image, text_to_image};
    use api::sdapi::{lists, options, progress};
    vec![
        row(Inference, "POST", "/sdapi/v1/txt2img",              post(text_to_image),       generate::text_to_image_operation()),
        row(Inference, "POST", "/sdapi/v1/img2img",              post(image_to_image),      generate::image_to_image_operation()),
        row(Inference, "GET",  "/sdapi/v1/progress",             get(progress::show),       progress::show_operation()),
        row(Inference, "POST", "/sdapi/v1/interrupt",            post(progress::interrupt), progress::interrupt_operation()),
        row(Inference, "GET",  "/sdapi/v1/options",              get(options::show),        options::show_operation()),
        row(Inference, "POST", "/sdapi/v1/options",              post(options::change),     options::change_operation()),
        row(Inference, "GET",  "/sdapi/v1/cmd-flags",            get(options::flags),       options::flags_operation()),
        row(Inference, "GET",  "/sdapi/v1/sd-models",            get(lists::models),        lists::models_operation()),
        row(Inference, "GET",  "/sdapi/v1/sd-vae",               get(lists::nothing),       lists::autoencoders_operation()),
        row(Inference, "GET",  "/sdapi/v1/samplers",             get(lists::samplers),      lists::samplers_operation()),
        row(Inference, "GET",  "/sdapi/v1/schedulers",           get(lists::schedulers),    lists::schedulers_operation()),
        row(Inference, "GET",  "/sdapi/v1/upscalers",            get(lists::upscalers),     lists::upscalers_operation()),
        row(Inference, "GET",  "/sdapi/v1/latent-upscale-modes", get(lists::nothing),       lists::latent_modes_operation()),
        row(Inference, "GET",  "/sdapi/v1/loras",                get(lists::loras),         lists::loras_operation()),
    ]
}

/// All routes, without their handlers.
pub fn routes() -> Vec<Route> {
    table().into_iter().map(|(route, _, _)| route).collect()
}
