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

  for (const block of document.querySelectorAll(".records")) showTable(block);
  for (const note of document.querySelectorAll(".no-script")) note.remove();

  function showTable(block) {
    const find = (selector) => block.querySelector(selector);
    const data = JSON.parse(find(".data").textContent);
    const { columns, values, tracks } = data;
    const ROW_HEIGHT = 30, SPARE = 10, NUM_PRINTED = 100;
    const scroll = find(".scroll"), body = find("tbody"), heads = [...block.querySelectorAll("th")];
    const search = find("input"), call = find("select");
    const ids = values.record_id.map((id) => id.toLowerCase());
    let order = ids.map((_, row) => row), shown = order, sorted = { name: "", rising: false };

    // Only the rows in sight exist, so that 100,000 records stay quick.
    function draw() {
      const first = Math.max(0, Math.floor(scroll.scrollTop / ROW_HEIGHT) - SPARE);
      drawRows(first, Math.min(shown.length, first + Math.ceil(scroll.clientHeight / ROW_HEIGHT) + 2 * SPARE));
    }
    function drawForPaper() {
      drawRows(0, Math.min(shown.length, NUM_PRINTED));
      const count = shown.length.toLocaleString("en");
      find(".printed").textContent = shown.length > NUM_PRINTED ? `Printed: the first ${NUM_PRINTED} of ${count} records.` : "";
    }
    function drawRows(first, last) {
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
          const parent = tracks && values.place[row] in tracks ? document.createElement("a") : cell;
          if (parent !== cell) {
            parent.href = `#track-${values.place[row]}`;
            cell.append(parent);
          }
          parent.append(isolated);
          cell.title = text;
        } else {
          cell.textContent = text;
          cell.className = isNumber ? "number" : name.startsWith("call") ? value : "";
        }
        line.append(cell);
      }
      return line;
    }
    const isChosen = (row) => call.value === "provirus" ? values.num_proviruses[row] > 0 : values.call[row] === call.value;
    function filter() {
      const wanted = search.value.trim().toLowerCase();
      shown = order.filter((row) => (!wanted || ids[row].includes(wanted)) && (!call?.value || isChosen(row)));
      find(".shown").textContent = `${shown.length.toLocaleString("en")} of ${ids.length.toLocaleString("en")} records`;
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
      for (const head of heads) {
        head.toggleAttribute("aria-sort", false);
        if (head.dataset.name === name) head.setAttribute("aria-sort", rising ? "ascending" : "descending");
        head.querySelector("span").textContent = head.dataset.name === name ? (rising ? " ▲" : " ▼") : "";
      }
      filter();
    }
    columns.forEach(([name, label, isNumber], index) => {
      const button = document.createElement("button");
      button.type = "button";
      button.append(label, document.createElement("span"));
      button.addEventListener("click", () => sort(name, isNumber));
      heads[index].replaceChildren(button);
    });
    search.addEventListener("input", filter);
    call?.addEventListener("change", filter);
    scroll.addEventListener("scroll", () => requestAnimationFrame(draw));
    addEventListener("resize", draw);
    addEventListener("beforeprint", drawForPaper);
    addEventListener("afterprint", draw);
    filter();
    if (tracks) showTracks(data);
  }

  // The page has the first tracks as figures. The script draws the others from numbers when a reader
  // asks for them: 100,000 figures would be too much.
  function showTracks({ values, tracks, frame }) {
    const model = document.querySelector("figure.track"), more = byId("more");
    if (!model) return;
    const NUM_MORE = 100;
    const nameOf = (place) => `track-${place}`;
    const rows = new Map(values.place.map((place, row) => [place, row]));
    // In the order of the table: keys of an object would come by number.
    const undrawn = values.place.filter((place) => place in tracks && !byId(nameOf(place)));
    let next = 0;

    function makeSvgElement(tag, attributes, ...content) {
      const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
      for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, typeof value === "number" ? +value.toFixed(1) : value);
      element.append(...content);
      return element;
    }
    const makeBox = (kind, box, title) => makeSvgElement("rect", { class: kind, ...box }, makeSvgElement("title", {}, title));
    const show = (start, end) => `${start.toLocaleString("en")} to ${end.toLocaleString("en")}`;
    // As `draw_track` of plots.py draws it.
    function drawTrack(place) {
      const row = rows.get(place), title = values.record_id[row], length = values.length[row];
      const [scores, runs, regions] = tracks[place];
      const figure = model.cloneNode(true), svg = figure.querySelector("svg");
      figure.id = nameOf(place);
      figure.querySelector("bdi").textContent = title;
      for (const button of figure.querySelectorAll("[data-save]")) button.setAttribute("aria-label", `Save ${title} as ${button.textContent}`);
      svg.setAttribute("aria-label", title);
      svg.dataset.name = title;
      for (const old of svg.querySelectorAll("rect, .tick[text-anchor=middle]")) old.remove();
      const { left, right, top, bottom, middle } = frame;
      const x = (position) => left + position / Math.max(1, length) * (right - left);
      const y = (score) => bottom - score * (bottom - top);
      const line = svg.querySelector(".threshold"), parts = [];
      for (let i = 0; i < regions.length; i += 2) {
        const [start, end] = regions.slice(i, i + 2);
        const box = { x: x(start), y: top, width: Math.max(1, x(end) - x(start)), height: bottom - top };
        line.before(makeBox("region", box, `viral region ${show(start, end)}`));
        if (end - start < length) parts.push(show(start, end));
      }
      figure.querySelector("figcaption")?.remove();
      if (parts.length) {
        const caption = document.createElement("figcaption");
        caption.className = "soft";
        caption.textContent = `Viral: ${parts.join("; ")}`;
        figure.append(caption);
      }
      const bytes = atob(scores), chunks = [];
      let start = 0;
      for (let i = 0; i < runs.length; i += 3) {
        const [count, step, size] = runs.slice(i, i + 3);
        for (let n = 0; n < count; n++) {
          start += step;
          const score = bytes.charCodeAt(chunks.length) / 255, end = start + size;
          const box = { x: x(start), width: Math.max(0.6, x(end) - x(start)) };
          box.y = Math.min(y(score), y(middle));
          box.height = Math.max(0.8, Math.abs(y(score) - y(middle)));
          chunks.push(makeBox(`chunk ${score >= middle ? "virus" : "others"}`, box, `${show(start, end)}: ${score.toFixed(2)}`));
        }
      }
      line.after(...chunks);
      for (const [value, label] of listTicks(length)) {
        svg.append(makeSvgElement("text", { class: "tick", x: x(value), y: bottom + 16, "text-anchor": "middle" }, label));
      }
      return figure;
    }
    function listTicks(highest) {
      const NUM_STEPS = 4;
      let step = Math.max(1, 10 ** Math.floor(Math.log10(Math.max(1, highest / NUM_STEPS))));
      step *= [1, 2, 5].find((factor) => highest / (step * factor) <= NUM_STEPS) || 10;
      const values = Array.from({ length: Math.floor(highest / step) + 1 }, (_, number) => number * step);
      const shorten = (value) => {
        const [size, letter] = [[1e9, "G"], [1e6, "M"], [1e3, "k"]].find(([size]) => value >= size) || [1, ""];
        return value / size + letter;
      };
      return values.map((value) => [value, shorten(value)]);
    }
    // A link of the table leads to a figure, so the figure must be there first.
    function open(hash) {
      const place = Number(hash.slice("#track-".length));
      if (hash === `#${nameOf(place)}` && place in tracks && !byId(nameOf(place))) model.parentNode.prepend(drawTrack(place));
    }
    function showRest() {
      const rest = undrawn.slice(next).filter((place) => !byId(nameOf(place))).length;
      more.textContent = `Draw more tracks: ${Math.min(NUM_MORE, rest)} of ${rest.toLocaleString("en")}`;
      more.hidden = !rest;
    }
    more.addEventListener("click", () => {
      const figures = [];
      for (; next < undrawn.length && figures.length < NUM_MORE; next++) {
        if (!byId(nameOf(undrawn[next]))) figures.push(drawTrack(undrawn[next]));
      }
      model.parentNode.append(...figures);
      showRest();
    });
    document.addEventListener("click", (event) => {
      const link = event.target.closest('.records a[href^="#track-"]');
      if (link) open(link.hash), showRest();
    });
    open(location.hash);
    showRest();
    // The browser looked for the figure before it was drawn.
    if (byId(location.hash.slice(1))) location.replace(location.hash);
  }
})();
