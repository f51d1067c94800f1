/** The keys of the page as a whole. */

/** @param {import("./app.js").App} app @param {KeyboardEvent} e */
export function pressed(app, e) {
  const typing = /^(INPUT|SELECT|TEXTAREA)$/.test(/** @type {HTMLElement} */ (e.target).tagName);
  const list = app.state.view === "runs";
  if (!typing && !e.ctrlKey && !e.metaKey && !e.altKey) {
    if (e.key === "?") return app.share.keys.showModal();
    if (e.key === "/") {
      e.preventDefault();
      return (list ? app.table : app.bar).filter.focus();
    }
    if (app.shown && !list && (e.key === "[" || e.key === "]")) return app.change({ fold: e.key === "[" ? "-" : "+" });
  }
  if (e.key !== "Escape" || app.share.keys.open) return;
  const { state } = app;
  if (app.share.menu.open) app.share.menu.open = false;
  else if (list) app.change(state.seek ? { seek: "" } : { chosen: "" });
  else if (state.page) app.change({ page: "" });
  else if (state.box) app.change({ box: "" });
  else if (state.from !== null) app.change({ from: null, to: null });
  else if (state.layer || state.incident || state.group || state.step !== null) app.change({ layer: "", incident: "", channel: null, step: null, group: "" });
  else if (state.filter) app.change({ filter: "" });
}
