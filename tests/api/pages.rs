//! The playground's files and the documentation page.

use reqwest::Method;

use super::server::Server;

#[tokio::test(flavor = "multi_thread")]
async fn the_playground_is_at_the_root_and_loads_only_from_here() {
    let server = Server::start().await;
    let page = server.get("/").await;
    assert_eq!(page.status(), 200);
    assert_eq!(page.headers()["content-type"], "text/html; charset=utf-8");
    let policy = page.headers()["content-security-policy"].to_str().unwrap().to_owned();
    assert!(policy.contains("default-src 'self'") && !policy.contains("unsafe"), "{policy}");
    assert_eq!(page.headers()["x-content-type-options"], "nosniff");
    let html = page.text().await.unwrap();
    for path in html.split('"').filter(|text| text.starts_with("/static/")) {
        assert_eq!(server.get(path).await.status(), 200, "{path}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unchanged_file_is_not_sent_again() {
    let server = Server::start().await;
    let tag = server.get("/").await.headers()["etag"].to_str().unwrap().to_owned();
    let again = server.request(Method::GET, "/").header("if-none-match", tag).send().await.unwrap();
    assert_eq!(again.status(), 304);
    assert!(again.text().await.unwrap().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_documentation_needs_no_other_server() {
    let server = Server::start().await;
    let page = server.get("/docs/").await;
    assert_eq!(page.status(), 200);
    assert!(page.headers()["content-security-policy"].to_str().unwrap().contains("default-src 'self'"));
    let html = page.text().await.unwrap();
    assert!(!html.contains("https://") && !html.contains("//cdn"), "{html}");
    let script = server.get("/docs/swagger-initializer.js").await.text().await.unwrap();
    assert!(script.contains("/openapi.json"));
    assert_eq!(server.get("/docs").await.status(), 200, "redirects to /docs/");
}
