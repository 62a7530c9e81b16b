"use strict";
// Everything here improves a page that is complete without it.
(() => {
  const root = document.documentElement;
  root.classList.add("has-script");
  const byId = (name) => document.getElementById(name);

  byId("theme").addEventListener("click", () => {
    const dark = getComputedStyle(root).colorScheme === "dark" ||
      (getComputedStyle(root).colorScheme !== "light" && matchMedia("(prefers-color-scheme: dark)").matches);
    root.style.colorScheme = dark ? "light" : "dark";
  });

  const STYLES = ["fill", "fill-opacity", "stroke", "stroke-width", "stroke-dasharray", "font-size", "font-family", "font-weight"];
  // A saved figure leaves the page's style sheet behind, so each element takes its style along.
  function makeSvg(svg) {
    const copy = svg.cloneNode(true);
    const from = svg.querySelectorAll("*"), to = copy.querySelectorAll("*");
    from.forEach((element, index) => {
      if (element.closest("defs")) return;
      const style = getComputedStyle(element);
      to[index].setAttribute("style", STYLES.map((name) => `${name}:${style.getPropertyValue(name)}`).join(";"));
    });
    const { width, height } = svg.viewBox.baseVal;
    copy.setAttribute("xmlns", "http://www.w3.org/2000/svg");
    copy.setAttribute("width", width);
    copy.setAttribute("height", height);
    copy.style.color = getComputedStyle(svg).color;
    copy.style.background = getComputedStyle(document.body).backgroundColor;
    return new XMLSerializer().serializeToString(copy);
  }
  function download(url, name) {
    const link = document.createElement("a");
    link.href = url;
    link.download = name;
    link.click();
  }
  function save(figure, ending) {
    const isImage = figure.tagName === "IMG";
    const words = (figure.dataset.name || document.title).replace(/[^A-Za-z0-9._-]+/g, "_");
    const name = `${words.slice(0, 80)}.${ending}`;
    const url = isImage ? figure.src : "data:image/svg+xml;charset=utf-8," + encodeURIComponent(makeSvg(figure));
    if (ending === "svg") return download(url, name);
    const picture = new Image();
    picture.onload = () => {
      const { width, height } = isImage ? picture : figure.viewBox.baseVal;
      const scale = Math.max(1, 1440 / width);
      const canvas = document.createElement("canvas");
      canvas.width = width * scale;
      canvas.height = height * scale;
      const context = canvas.getContext("2d");
      context.fillStyle = getComputedStyle(document.body).backgroundColor;
      context.fillRect(0, 0, canvas.width, canvas.height);
      context.drawImage(picture, 0, 0, canvas.width, canvas.height);
      download(canvas.toDataURL("image/png"), name);
    };
    picture.src = url;
  }
  document.addEventListener("click", (event) => {
    const button = event.target.closest("[data-save]");
    if (button) save(button.closest("figure").querySelector("svg, img"), button.dataset.save);
  });

  const holder = byId("data");
  if (!holder) return;
  const { columns, values, tracks } = JSON.parse(holder.textContent);
  const drawn = new Set(tracks);
  const ROW_HEIGHT = 30, SPARE = 10;
  const scroll = byId("scroll"), body = byId("records").tBodies[0];
  const ids = values.record_id.map((id) => id.toLowerCase());
  let order = ids.map((_, row) => row), shown = order, sorted = { name: "", rising: false };

  // Only the rows in sight exist, so that 100,000 records stay quick.
  function draw() {
    const first = Math.max(0, Math.floor(scroll.scrollTop / ROW_HEIGHT) - SPARE);
    const last = Math.min(shown.length, first + Math.ceil(scroll.clientHeight / ROW_HEIGHT) + 2 * SPARE);
    const rows = [spacer(first)];
    for (const row of shown.slice(first, last)) rows.push(makeRow(row));
    rows.push(spacer(shown.length - last));
    body.replaceChildren(...rows);
  }
  function spacer(count) {
    const row = document.createElement("tr");
    row.style.height = `${count * ROW_HEIGHT}px`;
    row.setAttribute("aria-hidden", "true");
    return row;
  }
  function makeRow(row) {
    const line = document.createElement("tr");
    for (const [name, , isNumber] of columns) {
      const cell = document.createElement("td");
      const value = values[name][row];
      const text = value === null ? "NA" : isNumber && Number.isInteger(value) ? value.toLocaleString("en") : String(value);
      if (name === "record_id") {
        const isolated = document.createElement("bdi");
        isolated.textContent = text;
        const parent = drawn.has(values.place[row]) ? document.createElement("a") : cell;
        if (parent !== cell) {
          parent.href = `#track-${values.place[row]}`;
          cell.append(parent);
        }
        parent.append(isolated);
        cell.title = text;
      } else {
        cell.textContent = text;
        cell.className = isNumber ? "number" : name === "call" ? value : "";
      }
      line.append(cell);
    }
    return line;
  }
  function filter() {
    const wanted = byId("search").value.trim().toLowerCase(), call = byId("call").value;
    shown = order.filter((row) => (!wanted || ids[row].includes(wanted)) && (!call || values.call[row] === call));
    byId("shown").textContent = `${shown.length.toLocaleString("en")} of ${ids.length.toLocaleString("en")} records`;
    scroll.scrollTop = 0;
    draw();
  }
  function sort(name, isNumber) {
    const rising = sorted.name === name ? !sorted.rising : !isNumber;
    sorted = { name, rising };
    const column = name === "record_id" ? ids : values[name];
    const sign = rising ? 1 : -1;
    // What is not known stands last in both directions.
    order.sort((a, b) => {
      const x = column[a], y = column[b];
      if (x === null || y === null) return (x === null) - (y === null) || a - b;
      return (x < y ? -sign : x > y ? sign : 0) || a - b;
    });
    for (const head of document.querySelectorAll("#records th")) {
      head.toggleAttribute("aria-sort", false);
      if (head.dataset.name === name) head.setAttribute("aria-sort", rising ? "ascending" : "descending");
      head.querySelector("span").textContent = head.dataset.name === name ? (rising ? " ▲" : " ▼") : "";
    }
    filter();
  }
  columns.forEach(([name, label, isNumber]) => {
    const head = document.querySelector(`#records th[data-name="${name}"]`);
    const button = document.createElement("button");
    button.type = "button";
    button.append(label, document.createElement("span"));
    button.addEventListener("click", () => sort(name, isNumber));
    head.replaceChildren(button);
  });
  for (const note of document.querySelectorAll(".no-script")) note.remove();
  byId("search").addEventListener("input", filter);
  byId("call").addEventListener("change", filter);
  scroll.addEventListener("scroll", () => requestAnimationFrame(draw));
  addEventListener("resize", draw);
  filter();
})();
