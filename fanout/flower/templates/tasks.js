/* Dresses fanout's columns. Flower's own renderer has escaped the cell before; everything here
   is set as text, never as HTML. */
(function () {
  "use strict";

  var prefix = (document.getElementById('url_prefix').value || '').replace(/^\/+|\/+$/g, '');

  function seconds(value) {
    if (value < 1) { return Math.round(value * 1000) + ' ms'; }
    return value < 100 ? value.toFixed(1) + ' s' : Math.round(value).toLocaleString() + ' s';
  }
  // Names of documents begin alike and differ at their end.
  function shortened(text) {
    return text.length > 34 ? text.slice(0, 12) + '…' + text.slice(-21) : text;
  }
  function count(value) { return value.toLocaleString(); }
  function rate(value) { return value.toFixed(1); }

  var NUMBERS = {
    attempts: count, tokens_in: count, tokens_out: count, tokens_reasoning: count,
    tokens_cached: count, tokens_per_s: rate, queued_s: seconds, permit_s: seconds,
    ttft_s: seconds, total_s: seconds
  };
  var BADGES = {
    ok: 'text-bg-success', invalid: 'text-bg-warning', failed: 'text-bg-danger',
    skipped: 'text-bg-secondary', cancelled: 'text-bg-secondary'
  };
  var TEXTS = ['item', 'job', 'failure', 'tier', 'endpoint', 'model'];

  function put(cell, tag, text, title) {
    var element = document.createElement(tag);
    element.textContent = text;
    if (title) { element.title = title; }
    cell.replaceChildren(element);
    return element;
  }

  function dress(cell, name, task) {
    var value = task[name];
    if (name === 'item') {
      var link = put(cell, 'a', shortened(value || task.uuid.slice(0, 8)), value || task.uuid);
      link.href = (prefix ? '/' + prefix : '') + '/task/' + encodeURIComponent(task.uuid);
    } else if (name === 'status' && value) {
      put(cell, 'span', value).className = 'badge ' + (BADGES[value] || 'text-bg-secondary');
    } else if (name === 'received' && cell.querySelector('time')) {
      var time = cell.querySelector('time');
      time.title = time.textContent;
      time.textContent = time.textContent.slice(5, 19); // month, day, time
    } else if (TEXTS.indexOf(name) >= 0 && value) {
      put(cell, 'span', value, value);
    } else if (NUMBERS[name] && typeof value === 'number') {
      cell.textContent = NUMBERS[name](value);
    }
  }

  window.jQuery.extend(window.jQuery.fn.dataTable.defaults, {
    createdRow: function (row, task, index, cells) {
      if (this[0].id !== 'tasks-table') { return; }
      this.fnSettings().aoColumns.forEach(function (column, position) {
        var name = column.mData, cell = cells[position];
        if (NUMBERS[name]) {
          cell.classList.add('fanout-number');
          column.nTh.classList.add('fanout-number');
        } else if (TEXTS.indexOf(name) >= 0) {
          cell.classList.add('fanout-text');
        }
        dress(cell, name, task);
      });
    }
  });
}());
