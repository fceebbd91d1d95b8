# An application with ActiveRecord, as a Rails application is one: changes products at random until it is ended.
require "active_record"
require "ksync"

ActiveRecord::Base.establish_connection(ENV.fetch("DATABASE_URL"))

class Product < ActiveRecord::Base
  include Ksync::Model
end

def change(id)
  product = Product.find_by(id: id)
  case rand(10)
  when 0 then product&.destroy!
  when 1 then Ksync.bulk(Product.where(id: id..id + 4).order(:id)) { |all| all.each { |one| one.update_columns(price: rand(1000)) } }
  when 2 then Product.transaction { product&.update!(price: -1); raise ActiveRecord::Rollback }
  else (product || Product.new(id: id)).update!(name: "by rails #{rand(1000)}", price: rand(1000))
  end
end

loop do
  change(rand(1..ENV.fetch("ROWS").to_i))
  puts "changed"
  $stdout.flush
rescue ActiveRecord::ActiveRecordError, Ksync::Error => error
  # Another application was faster, or ksync-stream is not there at the moment: nothing was changed.
  warn error.message
  sleep 0.1
end
